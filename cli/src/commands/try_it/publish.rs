//! `tbmqctl try publish`.

use std::{io::Read, num::NonZeroU64, path::PathBuf, time::Duration};

use bytes::Bytes;
use clap::{ArgGroup, Args};
use tbmq_mqtt::{
    codec::property::{Properties, PropertiesBuilder},
    packet::{Qos, ReasonCode},
    topic::{Rules, check_name},
};

use super::mqtt::{Broker, Client, qos};
use crate::{duration, failure::Failure, render::note};

/// Bytes of a message read from a file.
const MESSAGE_BYTES_MAX: u64 = 32 << 20;

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("payload").required(true).args(["message", "file"])))]
pub(crate) struct Arguments {
    #[command(flatten)]
    broker: Broker,
    /// Topic
    #[arg(short, long)]
    topic: String,
    /// Payload as text
    #[arg(short, long, value_name = "TEXT")]
    message: Option<String>,
    /// File with the payload; `-` is stdin
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Quality of service: 0, 1 or 2
    #[arg(short, long, value_parser = qos, default_value = "1")]
    qos: Qos,
    /// Keep it for later subscribers
    #[arg(long)]
    retain: bool,
    /// User property; may be repeated
    #[arg(long, value_name = "NAME=VALUE", value_parser = property)]
    property: Vec<(String, String)>,
    /// Publish it so many times, each after the acknowledgement of the one before
    #[arg(long, value_name = "N", default_value = "1")]
    count: NonZeroU64,
    /// Wait so long between two
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    interval: Option<Duration>,
}

pub(super) async fn run(arguments: Arguments, patience: Duration) -> Result<(), Failure> {
    check_name(&arguments.topic, &Rules::default())
        .map_err(|invalid| Failure::usage(format!("--topic {:?}: {invalid}", arguments.topic)))?;
    let payload = match (arguments.message, arguments.file) {
        (Some(message), _) => Bytes::from(message),
        (None, Some(file)) => read(&file)?,
        (None, None) => return Err(Failure::usage("--message or --file is missing")),
    };
    let mut properties = PropertiesBuilder::new();
    for (name, value) in &arguments.property {
        properties = properties.user(name, value);
    }
    let properties: Properties = properties.build();
    let mut client = Client::connect(&arguments.broker, patience).await?;
    let count = arguments.count.get();
    let mut unheard = 0;
    for index in 0..count {
        if let Some(interval) = arguments.interval.filter(|_| index > 0) {
            tokio::time::sleep(interval).await;
        }
        let (topic, qos, retain) = (&arguments.topic, arguments.qos, arguments.retain);
        let reason = client.publish(topic, payload.clone(), qos, retain, properties.clone()).await;
        let reason = reason.map_err(|mut failure| {
            if index > 0 {
                failure.message = format!("{} (after {index} of {count} messages)", failure.message);
            }
            failure
        })?;
        unheard += u64::from(reason == ReasonCode::NoMatchingSubscribers);
    }
    client.disconnect().await?;
    let plural = if count == 1 { "message" } else { "messages" };
    let heard = if unheard == 0 { String::new() } else { format!("; {unheard} had no subscriber") };
    note(&format!("published {count} {plural} to {}{heard}", arguments.topic));
    Ok(())
}

fn read(file: &std::path::Path) -> Result<Bytes, Failure> {
    let name = file.display().to_string();
    let mut payload = Vec::new();
    let read = if name == "-" {
        std::io::stdin().take(MESSAGE_BYTES_MAX + 1).read_to_end(&mut payload)
    } else {
        std::fs::File::open(file).and_then(|file| file.take(MESSAGE_BYTES_MAX + 1).read_to_end(&mut payload))
    };
    match read {
        Err(error) => Err(Failure::usage(format!("can't read {name}: {error}"))),
        Ok(bytes) if bytes as u64 > MESSAGE_BYTES_MAX => {
            Err(Failure::usage(format!("{name} has more than {MESSAGE_BYTES_MAX} bytes")))
        }
        Ok(_) => Ok(payload.into()),
    }
}

fn property(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or_else(|| format!("{text:?} is not NAME=VALUE"))?;
    let fits = |part: &str| u16::try_from(part.len()).is_ok() && !part.contains('\0');
    if fits(name) && fits(value) {
        Ok((name.to_owned(), value.to_owned()))
    } else {
        Err("a name or value is longer than 65535 bytes or holds U+0000".to_owned())
    }
}
