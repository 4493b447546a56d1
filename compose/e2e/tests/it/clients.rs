//! MQTT clients that we did not write.

use anyhow::Result;
use tbmq_harness::{Need, mosquitto, ready};

use tbmq_e2e::deployment::Deployment;

#[tokio::test(flavor = "multi_thread")]
async fn mosquittos_clients_talk_through_the_broker_in_both_versions_at_every_qos() -> Result<()> {
    if !ready("mosquittos_clients_talk_through_the_broker_in_both_versions_at_every_qos", &[Need::Mosquitto])
    {
        return Ok(());
    }
    let deployment = Deployment::standalone()?;
    let broker = deployment.mqtt();
    tokio::task::spawn_blocking(move || {
        for version in ["311", "5"] {
            for qos in 0..=2 {
                let subscriber = mosquitto::subscribe(broker, version, qos, "room/+/light", 2)?;
                mosquitto::publish(broker, version, qos, "room/1/light", "on")?;
                mosquitto::publish(broker, version, qos, "room/1/heat", "no")?;
                mosquitto::publish(broker, version, qos, "room/2/light", "off")?;
                assert_eq!(
                    subscriber.messages()?,
                    ["room/1/light on", "room/2/light off"],
                    "{version} {qos}"
                );
            }
        }
        anyhow::Ok(())
    })
    .await?
}
