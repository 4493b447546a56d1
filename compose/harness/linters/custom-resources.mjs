// Checks the objects of a YAML file that are not Kubernetes' own against the schemas of who defines them.
//   node custom-resources.mjs <file>
import { readFileSync } from 'node:fs';
import { parseAllDocuments } from 'yaml';

const packages = {
  'gateway.networking.k8s.io': 'gateway-api',
  'keda.sh': 'keda',
  'monitoring.coreos.com': 'prometheus-operator',
  'networking.istio.io': 'istio',
  'security.istio.io': 'istio',
};
// Kubernetes' own kinds that we use: kubernetes-validate knows them, and passes over every other.
const own = new Set([
  'apps/v1 StatefulSet',
  'networking.k8s.io/v1 NetworkPolicy',
  'policy/v1 PodDisruptionBudget',
  ...['ConfigMap', 'Namespace', 'Secret', 'Service', 'ServiceAccount'].map((kind) => `v1 ${kind}`),
]);

let checked = 0;
let failed = 0;
for (const document of parseAllDocuments(readFileSync(process.argv[2], 'utf8'))) {
  const object = document.toJS();
  const { apiVersion, kind } = object;
  if (own.has(`${apiVersion} ${kind}`)) continue;
  const [group] = apiVersion.split('/');
  const place = `${apiVersion} ${kind} ${object.metadata.name}`;
  try {
    if (!(group in packages)) throw new Error('nobody here knows this kind');
    const models = await import(`@kubernetes-models/${packages[group]}/${apiVersion}/${kind}`);
    new models[kind](object).validate();
    checked += 1;
  } catch (error) {
    failed += 1;
    console.error(`${place}: ${error.message}`);
  }
}
console.log(`${checked} custom resources`);
process.exitCode = failed === 0 ? 0 : 1;
