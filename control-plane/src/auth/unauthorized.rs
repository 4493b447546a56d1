//! What data planes tell of refused clients goes into the store. A record that is read twice, after a death, is counted
//! twice.

use prost::Message as _;
use tbmq_bus::{Record, TopicPartition};
use tbmq_proto::wire::UnauthorizedRecord;

use crate::{driver, plane::Plane, store::UnauthorizedRow};

/// Characters of a reason that are kept.
const REASON_CHARS_MAX: usize = 4_096;

/// Characters of an address that are kept.
const ADDRESS_CHARS_MAX: usize = 64;

/// Bytes of a client id or user name in MQTT.
const TEXT_BYTES_MAX: usize = 65_535;

/// Takes records in their order. Waits for a store that is away.
pub(crate) async fn store(plane: &Plane, partition: &TopicPartition, records: &[Record]) {
    let mut rows = Vec::with_capacity(records.len());
    for record in records {
        match row(record) {
            Ok(row) => rows.push(row),
            Err(error) => driver::skip(plane, partition, record, &error),
        }
    }
    if !driver::persist(|| plane.store.store_unauthorized(&rows)).await {
        plane.metrics.bad_records.inc_by(rows.len() as u64);
    }
}

fn row(record: &Record) -> Result<UnauthorizedRow, String> {
    let value = record.value.clone().ok_or("no value")?;
    let told = UnauthorizedRecord::decode(value).map_err(|error| error.to_string())?;
    for (field, text) in [("client_id", &told.client_id), ("user_name", &told.user_name)] {
        if text.len() > TEXT_BYTES_MAX || text.contains('\0') {
            return Err(format!("{field} is none of MQTT"));
        }
    }
    if told.client_id.is_empty() {
        return Err("client_id is empty".to_owned());
    }
    if !driver::TIMES_MS.contains(&told.time_ms) {
        return Err(format!("time_ms {} is no time", told.time_ms));
    }
    let short = |text: &str, max| text.chars().filter(|c| *c != '\0').take(max).collect();
    Ok(UnauthorizedRow {
        address: short(&told.address, ADDRESS_CHARS_MAX),
        reason: short(&told.reason, REASON_CHARS_MAX),
        client_id: told.client_id,
        user_name: told.user_name,
        password_provided: told.password_provided,
        tls_used: told.tls_used,
        time_ms: told.time_ms,
        count: told.count,
    })
}
