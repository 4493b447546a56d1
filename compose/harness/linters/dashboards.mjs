// Turns Grafana's dashboards into a TypeScript file that compiles only if they are what Grafana's own types say.
//   node dashboards.mjs <folder of dashboards> <file to write>
import { readFileSync, readdirSync, writeFileSync } from 'node:fs';

const [folder, target] = process.argv.slice(2);
const raw = '@grafana/schema/dist/types/raw';
const panels = { stat: 'StatPanelCfg', table: 'TablePanelCfg', timeseries: 'TimeSeriesPanelCfg' };
const lines = [
  `import type { Dashboard } from '${raw}/dashboard/x/dashboard_types.gen.d.ts';`,
  // JSON holds the values of enums.
  'type Json<T> = T extends string ? `${T}` : T extends (infer U)[] ? Json<U>[] : T extends object ? { [K in keyof T]: Json<T[K]> } : T;',
];
for (const [type, name] of Object.entries(panels)) {
  lines.push(`import type * as ${type} from '${raw}/composable/${type}/panelcfg/x/${name}_types.gen.d.ts';`);
}
for (const name of readdirSync(folder)) {
  const dashboard = JSON.parse(readFileSync(`${folder}/${name}`, 'utf8'));
  for (const panel of dashboard.panels.filter((panel) => panel.type !== 'row')) {
    lines.push(`// ${name}: ${panel.title}`);
    lines.push(`(${JSON.stringify(panel.options)}) satisfies Json<Partial<${panel.type}.Options>>;`);
    const { custom } = panel.fieldConfig.defaults;
    if (custom) lines.push(`(${JSON.stringify(custom)}) satisfies Json<Partial<${panel.type}.FieldConfig>>;`);
  }
  // What the data source adds is not in the types.
  for (const variable of dashboard.templating.list) delete variable.definition;
  for (const annotation of dashboard.annotations.list) {
    for (const key of ['expr', 'titleFormat', 'textFormat', 'step']) delete annotation[key];
  }
  lines.push(`// ${name}`, `(${JSON.stringify(dashboard)}) satisfies Json<Dashboard>;`);
}
writeFileSync(target, `${lines.join('\n')}\n`);
