//! A line of the log as a JSON object.

use std::fmt;

use serde_json::{Map, Value};
use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    fmt::{
        FmtContext, FormatEvent, FormatFields, FormattedFields,
        format::Writer,
        time::{FormatTime as _, SystemTime},
    },
    registry::LookupSpan,
};

/// Planes by the beginnings of their targets: a process may run all of them.
const PLANES: [(&str, &str); 6] = [
    ("tbmq_control_plane", "control-plane"),
    ("tbmq_migrations", "control-plane"),
    ("tbmq_data_plane", "data-plane"),
    ("tbmq_mqtt", "data-plane"),
    ("tbmq_executor", "executor"),
    ("tbmq_integration", "executor"),
];

/// Writes events as JSON: `timestamp`, `level`, `service`, `plane`, `target`, then the fields of the event, `message`
/// among them, and those of the spans that it is in.
#[derive(Debug)]
pub(super) struct Json {
    service: String,
    role: &'static str,
}

impl Json {
    pub(super) fn new(service: &str, role: &'static str) -> Self {
        Self { service: service.to_owned(), role }
    }

    fn plane(&self, target: &str) -> &'static str {
        let crate_name = target.split("::").next().unwrap_or_default();
        PLANES.iter().find(|(name, _)| *name == crate_name).map_or(self.role, |(_, plane)| plane)
    }
}

impl<S, N> FormatEvent<S, N> for Json
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let metadata = event.metadata();
        let mut timestamp = String::new();
        SystemTime.format_time(&mut Writer::new(&mut timestamp))?;
        let mut line = Map::new();
        line.insert("timestamp".to_owned(), timestamp.into());
        line.insert("level".to_owned(), metadata.level().as_str().into());
        line.insert("service".to_owned(), self.service.as_str().into());
        line.insert("plane".to_owned(), self.plane(metadata.target()).into());
        line.insert("target".to_owned(), metadata.target().into());
        let of_line = line.len();
        event.record(&mut Fields(&mut line));
        // The innermost span goes first: what is there already stays.
        for span in context.event_scope().into_iter().flatten() {
            let extensions = span.extensions();
            let Some(fields) = extensions.get::<FormattedFields<N>>() else { continue };
            let Ok(fields) = serde_json::from_str::<Map<String, Value>>(&fields.fields) else { continue };
            for (name, value) in fields {
                line.entry(name).or_insert(value);
            }
        }
        debug_assert!(line.len() >= of_line, "nothing is taken away");
        writeln!(writer, "{}", Value::Object(line))
    }
}

/// Puts the fields of an event into its line; what is there already stays.
struct Fields<'a>(&'a mut Map<String, Value>);

impl Fields<'_> {
    fn put(&mut self, field: &Field, value: impl Into<Value>) {
        self.0.entry(field.name()).or_insert_with(|| value.into());
    }
}

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value);
    }
}

#[cfg(test)]
mod tests {
    use std::{io, sync::Arc};

    use parking_lot::Mutex;
    use tracing_subscriber::{
        fmt::{self as logs, MakeWriter, format::JsonFields},
        layer::SubscriberExt as _,
    };

    use super::*;
    use crate::trace::TraceContext;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl MakeWriter<'_> for Kept {
        type Writer = Self;

        fn make_writer(&self) -> Self {
            self.clone()
        }
    }

    fn logged(log: impl FnOnce()) -> Vec<Value> {
        let kept = Kept::default();
        let lines = logs::layer()
            .with_writer(kept.clone())
            .fmt_fields(JsonFields::new())
            .event_format(Json::new("node-1", "tbmq"));
        tracing::subscriber::with_default(tracing_subscriber::registry().with(lines), log);
        let text = String::from_utf8(kept.0.lock().clone()).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn a_line_says_of_which_service_and_plane_it_is() {
        let lines = logged(|| {
            tracing::warn!(target: "tbmq_data_plane::route", count = 3, is_full = true, error = %"away", "can't write");
            tracing::info!(target: "hyper", "hello");
        });
        let [first, second] = lines.as_slice() else { panic!("{lines:?}") };
        let expected = serde_json::json!({
            "timestamp": first["timestamp"], "level": "WARN", "service": "node-1", "plane": "data-plane",
            "target": "tbmq_data_plane::route", "message": "can't write", "count": 3, "is_full": true, "error": "away",
        });
        assert_eq!(*first, expected);
        assert!(first["timestamp"].as_str().unwrap().ends_with('Z'));
        assert_eq!(second["plane"], "tbmq", "of no plane in particular");
    }

    #[test]
    fn what_is_traced_has_its_ids_at_the_top() {
        let context = TraceContext::parse("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01").unwrap();
        let lines = logged(|| {
            context.log_span().in_scope(|| {
                tracing::info!("inside");
                tracing::info!(span_id = "own", "with its own");
            });
            tracing::info!("outside");
        });
        assert_eq!(lines[0]["trace_id"], "0af7651916cd43dd8448eb211c80319c");
        assert_eq!(lines[0]["span_id"], "b7ad6b7169203331");
        assert_eq!(lines[1]["span_id"], "own");
        assert_eq!(lines[2].get("trace_id"), None);
    }
}
