//! Every scenario, as `mosquitto_pub` and `mosquitto_sub` play it: a process for each connection, told all it has to do by
//! its arguments.

use std::collections::HashMap;

use anyhow::{Context as _, Result, ensure};
use tbmq_harness::mosquitto::{Subscriber, publish_with, subscribe_with};

use super::scenario::{Place, Player, Scenario};

#[derive(Default)]
pub(super) struct Mosquitto {
    /// Those that are connected while the broker restarts, by place.
    awake: HashMap<String, Subscriber>,
}

impl Player for Mosquitto {
    fn play(&mut self, scenario: Scenario, place: Place<'_>) -> Result<()> {
        let tools = Tools { place, prefix: place.prefix(scenario) };
        match scenario {
            Scenario::EveryPair => tools.every_pair_of_qualities(),
            Scenario::AnyPayload => tools.any_payload(),
            Scenario::Will => tools.will(),
            Scenario::Properties => tools.properties(),
            Scenario::Retained => tools.retained(),
            Scenario::Shared => tools.shared(),
            Scenario::KeptSession => tools.kept_session(),
            Scenario::BeforeRestart => {
                self.awake.insert(tools.prefix.clone(), tools.before_restart()?);
                Ok(())
            }
            Scenario::AfterRestart => {
                let awake = self.awake.remove(&tools.prefix).context("nobody was connected")?;
                tools.after_restart(awake)
            }
        }
    }
}

struct Tools<'a> {
    place: Place<'a>,
    /// Begins client ids and topics.
    prefix: String,
}

impl Tools<'_> {
    fn version(&self) -> &'static str {
        match self.place.version {
            3 => "mqttv31",
            4 => "mqttv311",
            _ => "mqttv5",
        }
    }

    fn topic(&self, topic: &str) -> String {
        format!("{}/{topic}", self.prefix)
    }

    fn road(&self) -> Vec<&str> {
        self.place.road.authority.iter().flat_map(|file| ["--cafile", file]).collect()
    }

    /// Publishes, and waits until the exchange is over.
    fn publish(&self, topic: &str, payload: &str, qos: u8, more: &[&str]) -> Result<()> {
        let (topic, qos) = (self.topic(topic), qos.to_string());
        let payload = if payload.is_empty() { vec!["-n"] } else { vec!["-m", payload] };
        let arguments = [&self.road()[..], &["-t", &topic, "-q", &qos], &payload, more].concat();
        publish_with(self.place.road.address, self.version(), &arguments)
    }

    /// Subscribes, and waits for `count` messages of this format.
    fn subscribe(
        &self,
        filter: &str,
        qos: u8,
        count: u32,
        format: &str,
        more: &[&str],
    ) -> Result<Subscriber> {
        let qos = qos.to_string();
        let arguments = [&self.road()[..], &["-t", filter, "-q", &qos], more].concat();
        subscribe_with(self.place.road.address, self.version(), &arguments, count, format)
    }

    /// Subscribes with a session that stays.
    fn subscribe_for_long(&self, client_id: &str, filter: &str, count: u32) -> Result<Subscriber> {
        let mut stay = vec!["-c", "-i", client_id];
        if self.place.version == 5 {
            stay.extend(["-x", "3600"]);
        }
        self.subscribe(filter, 2, count, "%p %q", &stay)
    }

    fn every_pair_of_qualities(&self) -> Result<()> {
        for subscribed in 0..=2 {
            let subscriber = self.subscribe(&self.topic("room/+"), subscribed, 3, "%t %p %q", &[])?;
            for published in 0..=2 {
                self.publish("elsewhere", "nobody wants this", published, &[])?;
                self.publish(&format!("room/{published}"), "on", published, &[])?;
            }
            let wanted = [0, 1, 2].map(|published: u8| {
                format!("{} on {}", self.topic(&format!("room/{published}")), published.min(subscribed))
            });
            have(subscriber, &wanted)?;
        }
        Ok(())
    }

    fn any_payload(&self) -> Result<()> {
        let long = "0123456789".repeat(6_000);
        let payloads = ["", " ", "naïve ☕ 🦀", &long];
        let subscriber = self.subscribe(&self.topic("größe"), 2, payloads.len() as u32, "%p", &[])?;
        for payload in payloads {
            self.publish("größe", payload, 1, &[])?;
        }
        have(subscriber, &payloads)
    }

    fn will(&self) -> Result<()> {
        for qos in 0..=2 {
            let heir = self.subscribe(&self.topic("will/+"), 2, 2, "%p %q", &[])?;
            let (topic, text) = (self.topic("will/x"), qos.to_string());
            let will = ["--will-topic", &topic, "--will-payload", "gone", "--will-qos", &text];
            // Who says goodbye has no will.
            self.publish("will/0", "nobody died", 0, &will)?;
            self.subscribe(&self.topic("nothing"), 0, 1, "%p", &will)?.kill()?;
            have(heir, &["nobody died 0".to_owned(), format!("gone {qos}")])?;
        }
        Ok(())
    }

    fn properties(&self) -> Result<()> {
        let identifier = ["-D", "subscribe", "subscription-identifier", "268435455"];
        let format = "%E|%C|%D|%F|%P|%R|%S";
        for qos in 0..=2 {
            let subscriber = self.subscribe(&self.topic("with/#"), qos, 1, format, &identifier)?;
            let mut given = Vec::new();
            for property in [
                &["payload-format-indicator", "1"][..],
                &["message-expiry-interval", "3600"],
                &["content-type", "text/plain; charset=utf-8"],
                &["correlation-data", "order 66"],
                &["response-topic", "re/ply"],
                &["user-property", "name", "first"],
                &["user-property", "name", "second"],
            ] {
                given.extend(["-D", "publish"].iter().chain(property));
            }
            self.publish("with/properties", "some", qos, &given)?;
            let [seen] = &subscriber.messages()?[..] else { unreachable!("it ends after one message") };
            let (left, seen) = seen.split_once('|').context("no expiry")?;
            ensure!((3_500..=3_600).contains(&left.parse::<u32>()?), "{left} s are left");
            let wanted = "text/plain; charset=utf-8|order 66|1|name:first name:second|re/ply|268435455";
            ensure!(seen == wanted, "{wanted} was sent, and {seen} came");
        }
        Ok(())
    }

    fn retained(&self) -> Result<()> {
        for qos in 0..=2 {
            let topic = format!("kept/{qos}");
            self.publish(&topic, "first", qos, &["-r"])?;
            self.publish(&topic, "last", qos, &["-r"])?;
            let subscriber = self.subscribe(&self.topic(&topic), 2, 2, "%p %q %r", &[])?;
            // Who is subscribed gets it as any message, and who comes later does not.
            self.publish(&topic, "", qos, &["-r"])?;
            have(subscriber, &[format!("last {qos} 1"), format!(" {qos} 0")])?;
        }
        let late = self.subscribe(&self.topic("kept/#"), 2, 1, "%p %q %r", &[])?;
        self.publish("kept/0", "live", 1, &[])?;
        have(late, &["live 1 0"])
    }

    fn shared(&self) -> Result<()> {
        let filter = format!("$share/group/{}", self.topic("work/+"));
        let leaver = self.subscribe(&filter, 1, 5, "%p", &[])?;
        let stayer = self.subscribe(&filter, 1, 7, "%p", &[])?;
        let pieces: Vec<String> = (0..12).map(|number| format!("piece {number:02}")).collect();
        for piece in &pieces[..10] {
            self.publish("work/any", piece, 1, &[])?;
        }
        let mut done = leaver.messages()?;
        for piece in &pieces[10..] {
            self.publish("work/any", piece, 1, &[])?;
        }
        done.extend(stayer.messages()?);
        done.sort_unstable();
        ensure!(done == pieces, "{pieces:?} were published, and {done:?} came");
        Ok(())
    }

    fn kept_session(&self) -> Result<()> {
        let (client_id, filter) = (self.topic("sleeper"), self.topic("news"));
        self.subscribe_for_long(&client_id, &filter, 1)?.kill()?;
        for qos in 1..=2 {
            self.publish("news", "meanwhile", qos, &[])?;
        }
        let woken = self.subscribe_for_long(&client_id, &filter, 3)?;
        // At QoS 2 as the last one, which at QoS 0 would overtake: it shows that one when the exchange is over.
        self.publish("news", "live", 2, &[])?;
        have(woken, &["meanwhile 1", "meanwhile 2", "live 2"])?;
        // Clean: the session goes.
        self.subscribe(&filter, 2, 1, "%p", &["-i", &client_id])?.kill()?;
        self.publish("news", "for nobody", 1, &[])?;
        let new = self.subscribe_for_long(&client_id, &filter, 1)?;
        self.publish("news", "live", 1, &[])?;
        have(new, &["live 1"])
    }

    /// Returns a subscriber that is connected.
    fn before_restart(&self) -> Result<Subscriber> {
        let filter = self.topic("news");
        self.subscribe_for_long(&self.topic("sleeper"), &filter, 1)?.kill()?;
        for qos in 1..=2 {
            self.publish("news", "before", qos, &[])?;
        }
        self.publish("kept", "retained", 1, &["-r"])?;
        self.subscribe_for_long(&self.topic("awake"), &filter, 1)
    }

    fn after_restart(&self, mut awake: Subscriber) -> Result<()> {
        let filter = self.topic("news");
        self.publish("news", "after", 2, &[])?;
        if self.place.version == 5 {
            awake.kill()?;
            awake = self.subscribe_for_long(&self.topic("awake"), &filter, 1)?;
        }
        have(awake, &["after 2"])?;
        let woken = self.subscribe_for_long(&self.topic("sleeper"), &filter, 3)?;
        have(woken, &["before 1", "before 2", "after 2"])?;
        have(self.subscribe(&self.topic("kept"), 1, 1, "%p %q %r", &[])?, &["retained 1 1"])
    }
}

/// Waits until the subscriber has all it waits for, which has to be this.
fn have<T: AsRef<str>>(subscriber: Subscriber, wanted: &[T]) -> Result<()> {
    let seen = subscriber.messages()?;
    let wanted: Vec<&str> = wanted.iter().map(AsRef::as_ref).collect();
    ensure!(seen == wanted, "{wanted:?} were to come, and not {seen:?}");
    Ok(())
}
