//! What an integration that comes from TBMQ does otherwise here (spec §9.3, "upstream defects", and §6).

use serde_json::Value;

use super::Entry;

/// What holds for all that is imported.
pub(crate) const GENERAL: &[&str] = &[
    "messages that TBMQ has not delivered, its events and its statistics stay with TBMQ; times of creation begin anew",
    "what is enabled in both places is delivered twice when messages reach both: --disabled imports without starting",
    "the strategy for failed messages (TB_IE_… and INTEGRATIONS_… settings) is that of the executors here, unless the \
     integration has a `delivery` object of its own",
];

/// What holds for all of a type.
pub(crate) fn of_kind(kind: &str) -> &'static [&'static str] {
    match kind {
        "HTTP" => &[
            "HTTP: hosts of the local network are refused where the executor's setting says so; TBMQ applies that setting \
             to MQTT only",
        ],
        "MQTT" => &[
            "MQTT: messages wait while the broker is away; TBMQ goes on, and gives up what can't be sent",
            "MQTT: the connection check has a client id of its own; TBMQ's ends a running connection of the same id",
        ],
        "KAFKA" => &[
            "KAFKA: hosts of the local network are refused where the executor's setting says so; TBMQ applies that \
             setting to MQTT only",
        ],
        _ => &[],
    }
}

/// What holds for this one; `schema` is that of its type's `clientConfiguration`.
pub(crate) fn of_entry(entry: &Entry, schema: Option<&Value>) -> Vec<String> {
    let document = &entry.document;
    let mut notes = Vec::new();
    if document.display_name.trim() != document.display_name {
        notes.push("its name is taken without the space around it".to_owned());
    }
    if !entry.other_info.is_empty() {
        notes.push(format!(
            "additionalInfo has no place here but for the description; left out: {}",
            entry.other_info.join(", ")
        ));
    }
    let configuration: Value = serde_json::from_str(&document.configuration_json).unwrap_or_default();
    let client = &configuration["clientConfiguration"];
    match document.kind.as_str() {
        "HTTP" => http(client, &mut notes),
        "MQTT" => mqtt(client, &mut notes),
        "KAFKA" => kafka(client, schema, &mut notes),
        _ => {}
    }
    notes
}

fn http(client: &Value, notes: &mut Vec<String>) {
    if client["restEndpointUrl"].as_str().is_some_and(has_escape) {
        notes.push(
            "escapes such as %20 in its URL stay as they are; TBMQ encodes them a second time, as %2520"
                .to_owned(),
        );
    }
    if is_positive(&client["maxParallelRequestsCount"]) && !is_positive(&client["readTimeoutMs"]) {
        notes.push(
            "requests beyond maxParallelRequestsCount wait for a free place; TBMQ reports them as failed and sends them all \
             the same"
                .to_owned(),
        );
    }
}

fn mqtt(client: &Value, notes: &mut Vec<String>) {
    if client["credentials"]["type"] == "cert.PEM" && !is_true(&client["ssl"]) {
        notes.push(
            "it connects with TLS, since it has certificates; TBMQ ignores them while `ssl` is false"
                .to_owned(),
        );
    }
    if !is_positive(&client["keepAliveSec"]) {
        notes.push("keepAliveSec 0 means no keep-alive; in TBMQ such an integration can't start".to_owned());
    }
    if !is_positive(&client["reconnectPeriodSec"]) {
        notes.push(
            "reconnectPeriodSec 0: after the loss of the connection it fails and is started anew by the executor".to_owned(),
        );
    }
}

fn kafka(client: &Value, schema: Option<&Value>, notes: &mut Vec<String>) {
    if is_true(&client["sendOnlyMsgPayload"]) {
        notes.push(
            "payloads that are not UTF-8 are sent as they came; TBMQ sends them as base64 text".to_owned(),
        );
    }
    let known = schema.and_then(|schema| schema.pointer("/properties/otherProperties/properties"));
    if let (Some(known), Some(given)) = (known, client["otherProperties"].as_object()) {
        let ignored: Vec<&str> =
            given.keys().map(String::as_str).filter(|name| known.get(name).is_none()).collect();
        if !ignored.is_empty() {
            notes.push(format!("otherProperties that have no effect here: {}", ignored.join(", ")));
        }
    }
}

/// As TBMQ's binder reads a number (spec §6.6).
fn is_positive(value: &Value) -> bool {
    match value {
        Value::Number(number) => number.as_f64().is_some_and(|number| number >= 1.0),
        Value::String(text) => text.trim().parse::<f64>().is_ok_and(|number| number >= 1.0),
        _ => false,
    }
}

fn is_true(value: &Value) -> bool {
    value == &Value::Bool(true)
        || value.as_str().is_some_and(|text| text.trim().eq_ignore_ascii_case("true"))
        || value.as_i64().is_some_and(|number| number != 0)
}

fn has_escape(url: &str) -> bool {
    let mut bytes = url.as_bytes().windows(3);
    bytes.any(|three| three[0] == b'%' && three[1].is_ascii_hexdigit() && three[2].is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::document::Document;

    fn notes(kind: &str, client: Value) -> Vec<String> {
        let document = Document {
            display_name: "x".to_owned(),
            kind: kind.to_owned(),
            configuration_json: json!({ "clientConfiguration": client }).to_string(),
            ..Document::default()
        };
        let schema = json!({ "properties": { "otherProperties": { "properties": { "acks": {} } } } });
        of_entry(&Entry { document, other_info: Vec::new() }, Some(&schema))
    }

    #[test]
    fn what_tbmqs_forms_write_by_default_means_the_same_here() {
        let http =
            json!({ "restEndpointUrl": "http://h/100%", "readTimeoutMs": 0, "maxParallelRequestsCount": 0 });
        assert_eq!(notes("HTTP", http), [""; 0]);
        let mqtt = json!({ "credentials": { "type": "anonymous" }, "ssl": false, "keepAliveSec": 60, "reconnectPeriodSec": 5 });
        assert_eq!(notes("MQTT", mqtt), [""; 0]);
        let kafka = json!({ "sendOnlyMsgPayload": false, "otherProperties": null });
        assert_eq!(notes("KAFKA", kafka), [""; 0]);
    }

    #[test]
    fn each_difference_is_told() {
        let http = json!({ "restEndpointUrl": "http://h/a%20b", "readTimeoutMs": 0, "maxParallelRequestsCount": "5" });
        assert_eq!(notes("HTTP", http).len(), 2);
        let mqtt = json!({ "credentials": { "type": "cert.PEM" }, "ssl": false, "keepAliveSec": 0 });
        assert_eq!(notes("MQTT", mqtt).len(), 3);
        let kafka = json!({ "sendOnlyMsgPayload": true, "otherProperties": { "acks": "1", "interceptor.classes": "x" } });
        let notes = notes("KAFKA", kafka);
        assert_eq!(notes.len(), 2);
        assert!(notes[1].ends_with(": interceptor.classes"), "{notes:?}");
    }

    #[test]
    fn what_has_no_place_is_named() {
        let document = Document { display_name: " x".to_owned(), ..Document::default() };
        let entry = Entry { document, other_info: vec!["color".to_owned()] };
        let notes = of_entry(&entry, None);
        assert!(notes.len() == 2 && notes[1].ends_with("left out: color"), "{notes:?}");
    }
}
