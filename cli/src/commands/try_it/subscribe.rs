//! `tbmqctl try subscribe`.

use std::time::Duration;

use clap::Args;
use tbmq_mqtt::{
    packet::{Publish, Qos},
    topic::{Rules, check_filter},
};

use super::{
    http_sink::{hex, printable},
    mqtt::{Broker, Client, qos},
};
use crate::{
    failure::Failure,
    render::{Output, note},
};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    broker: Broker,
    /// Topic filter; may be repeated
    #[arg(short, long, required = true)]
    filter: Vec<String>,
    /// Highest quality of service: 0, 1 or 2
    #[arg(short, long, value_parser = qos, default_value = "1")]
    qos: Qos,
    /// Stop after so many messages
    #[arg(long, value_name = "N")]
    count: Option<u64>,
}

pub(super) async fn run(arguments: Arguments, patience: Duration, output: Output) -> Result<(), Failure> {
    for filter in &arguments.filter {
        check_filter(filter, &Rules::default())
            .map_err(|invalid| Failure::usage(format!("--filter {filter:?}: {invalid}")))?;
    }
    let mut client = Client::connect(&arguments.broker, patience).await?;
    client.subscribe(&arguments.filter, arguments.qos).await?;
    note(&format!("subscribed to {}", arguments.filter.join(", ")));
    let mut seen = 0;
    while arguments.count.is_none_or(|count| seen < count) {
        let publish = tokio::select! {
            publish = client.next() => publish?,
            _ = tokio::signal::ctrl_c() => break,
        };
        seen += 1;
        output.print_item(|| text(&publish), || None, || Some(value(&publish)))?;
    }
    client.disconnect().await
}

fn text(publish: &Publish) -> String {
    let payload = match std::str::from_utf8(&publish.payload) {
        Ok(payload) => printable(payload),
        Err(_) => format!("{} bytes: {}", publish.payload.len(), hex(&publish.payload)),
    };
    format!("{} {payload}\n", printable(&publish.topic))
}

fn value(publish: &Publish) -> serde_json::Value {
    let properties: Vec<_> = publish
        .properties
        .user_properties()
        .map(|(name, value)| serde_json::json!([&*name, &*value]))
        .collect();
    let mut json = serde_json::json!({
        "topic": &*publish.topic,
        "qos": publish.qos.bits(),
        "retain": publish.retain,
    });
    if !properties.is_empty() {
        json["userProperties"] = properties.into();
    }
    match std::str::from_utf8(&publish.payload) {
        Ok(payload) => json["payload"] = payload.into(),
        Err(_) => json["payloadHex"] = hex(&publish.payload).into(),
    }
    json
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use tbmq_mqtt::codec::property::PropertiesBuilder;

    use super::*;

    fn publish(payload: &'static [u8]) -> Publish {
        Publish {
            dup: false,
            qos: Qos::AtLeastOnce,
            retain: false,
            topic: "a/b".into(),
            packet_id: Some(1),
            properties: PropertiesBuilder::new().user("unit", "C").build(),
            payload: Bytes::from_static(payload),
        }
    }

    #[test]
    fn a_message_is_one_line() {
        assert_eq!(text(&publish(b"21.5")), "a/b 21.5\n");
        assert_eq!(text(&publish(b"\xff\n")), "a/b 2 bytes: ff0a\n");
        assert_eq!(text(&publish(b"a\nb")), "a/b a\u{fffd}b\n");
    }

    #[test]
    fn programs_get_everything() {
        let expected =
            r#"{"topic":"a/b","qos":1,"retain":false,"userProperties":[["unit","C"]],"payload":"x"}"#;
        assert_eq!(value(&publish(b"x")).to_string(), expected);
    }
}
