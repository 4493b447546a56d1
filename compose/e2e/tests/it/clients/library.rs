//! Every scenario, as a library plays it that is behind the commands of `compose/e2e/clients/README.md`.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{
    agent::Agent,
    scenario::{Place, Player, Scenario},
};

/// A library that can do each of the commands; it plays every scenario in the same way.
pub(super) struct Library(pub(super) Box<dyn Agent>);

impl Player for Library {
    fn play(&mut self, scenario: Scenario, place: Place<'_>) -> Result<()> {
        let mut talk = Talk { agent: &mut *self.0, place, prefix: place.prefix(scenario) };
        match scenario {
            Scenario::EveryPair => every_pair_of_qualities(&mut talk),
            Scenario::AnyPayload => any_payload(&mut talk),
            Scenario::Will => will(&mut talk),
            Scenario::Properties => properties(&mut talk),
            Scenario::Retained => retained(&mut talk),
            Scenario::Shared => shared(&mut talk),
            Scenario::KeptSession => kept_session(&mut talk),
            Scenario::BeforeRestart => before_restart(&mut talk),
            Scenario::AfterRestart => after_restart(&mut talk),
        }
    }
}

/// One library in one version on one road.
struct Talk<'a> {
    agent: &'a mut dyn Agent,
    place: Place<'a>,
    /// Begins client ids and topics.
    prefix: String,
}

impl Talk<'_> {
    fn ask(&mut self, what: &str, client: &str, mut command: Value) -> Result<Value> {
        command["do"] = what.into();
        command["client"] = format!("{}-{client}", self.prefix).into();
        self.agent.ask(&command).with_context(|| format!("{client}: {command}"))
    }

    fn topic(&self, topic: &str) -> String {
        format!("{}/{topic}", self.prefix)
    }

    /// Connects with a session that ends with the connection; `more` adds to the command.
    fn connect(&mut self, client: &str, more: Value) -> Result<()> {
        let answer = self.connect_as(client, true, more)?;
        ensure!(answer["session_present"] == false, "a new client has a session");
        Ok(())
    }

    /// Connects with the session that there is, or a new one that stays.
    fn connect_again(&mut self, client: &str, has_session: bool) -> Result<()> {
        let answer = self.connect_as(client, false, json!({ "expiry": 3_600 }))?;
        // A 3.1 client is not told.
        let is_told = has_session && self.place.version > 3;
        ensure!(answer["session_present"] == is_told, "{answer}, and there is one: {has_session}");
        Ok(())
    }

    fn connect_as(&mut self, client: &str, clean: bool, more: Value) -> Result<Value> {
        let mut command =
            json!({ "url": self.place.road.url(), "version": self.place.version, "clean": clean });
        if let Some(authority) = &self.place.road.authority {
            command["ca"] = authority.as_str().into();
        }
        for (key, value) in more.as_object().into_iter().flatten() {
            command[key] = value.clone();
        }
        self.ask("connect", client, command)
    }

    fn subscribe(&mut self, client: &str, filter: &str, qos: u8) -> Result<()> {
        let command = json!({ "filter": self.topic(filter), "qos": qos });
        self.subscribe_as(client, command)
    }

    fn subscribe_as(&mut self, client: &str, command: Value) -> Result<()> {
        let qos = command["qos"].clone();
        let answer = self.ask("subscribe", client, command)?;
        ensure!(answer["granted"] == qos, "{answer} was granted");
        Ok(())
    }

    /// Publishes, and waits until the exchange is over.
    fn publish(&mut self, client: &str, topic: &str, payload: &str, qos: u8) -> Result<()> {
        self.publish_as(client, topic, payload, qos, false)
    }

    fn publish_as(&mut self, client: &str, topic: &str, payload: &str, qos: u8, retain: bool) -> Result<()> {
        let command = json!({ "topic": self.topic(topic), "payload": payload, "qos": qos, "retain": retain });
        self.ask("publish", client, command).map(drop)
    }

    /// The next message that comes to a client, which has to be this one; returns its properties.
    fn receive(&mut self, client: &str, topic: &str, payload: &str, qos: u8) -> Result<Value> {
        self.receive_as(client, topic, payload, qos, false)
    }

    fn receive_as(
        &mut self,
        client: &str,
        topic: &str,
        payload: &str,
        qos: u8,
        retain: bool,
    ) -> Result<Value> {
        let answer = self.ask("receive", client, json!({}))?;
        let seen = [&answer["topic"], &answer["payload"], &answer["qos"], &answer["retain"]];
        let wanted = [self.topic(topic).into(), payload.into(), qos.into(), Value::from(retain)];
        ensure!(seen.into_iter().eq(wanted.iter()), "{wanted:?} was to come, and not {answer}");
        Ok(answer["properties"].clone())
    }

    fn cut(&mut self, client: &str) -> Result<()> {
        self.ask("break", client, json!({})).map(drop)
    }

    fn disconnect(&mut self, client: &str) -> Result<()> {
        self.ask("disconnect", client, json!({})).map(drop)
    }
}

fn every_pair_of_qualities(talk: &mut Talk<'_>) -> Result<()> {
    talk.connect("subscriber", json!({}))?;
    talk.connect("publisher", json!({}))?;
    for subscribed in 0..=2 {
        talk.subscribe("subscriber", &format!("{subscribed}/+"), subscribed)?;
    }
    for subscribed in 0..=2 {
        for published in 0..=2 {
            let (topic, text) = (format!("{subscribed}/{published}"), format!("{published} to {subscribed}"));
            talk.publish("publisher", &topic, &text, published)?;
            talk.publish("publisher", "elsewhere", "nobody wants this", published)?;
            talk.receive("subscriber", &topic, &text, published.min(subscribed))?;
        }
    }
    talk.disconnect("publisher")?;
    talk.disconnect("subscriber")
}

fn any_payload(talk: &mut Talk<'_>) -> Result<()> {
    talk.connect("self", json!({}))?;
    talk.subscribe("self", "#", 2)?;
    let long = "0123456789".repeat(6_000);
    for (number, payload) in ["", " ", "naïve ☕ 🦀", &long].into_iter().enumerate() {
        let topic = format!("größe/{number}");
        talk.publish("self", &topic, payload, 1)?;
        talk.receive("self", &topic, payload, 1)?;
    }
    talk.disconnect("self")
}

fn will(talk: &mut Talk<'_>) -> Result<()> {
    talk.connect("heir", json!({}))?;
    talk.subscribe("heir", "will/+", 2)?;
    for qos in 0..=2 {
        let topic = format!("will/{qos}");
        let will = json!({ "topic": talk.topic(&topic), "payload": "gone", "qos": qos, "retain": false });
        // Who says goodbye has no will.
        talk.connect("leaver", json!({ "will": will }))?;
        talk.disconnect("leaver")?;
        talk.publish("heir", "will/0", "nobody died", 0)?;
        talk.receive("heir", "will/0", "nobody died", 0)?;
        talk.connect("leaver", json!({ "will": will }))?;
        talk.cut("leaver")?;
        talk.receive("heir", &topic, "gone", qos)?;
    }
    talk.disconnect("heir")
}

fn properties(talk: &mut Talk<'_>) -> Result<()> {
    talk.connect("self", json!({}))?;
    for (filter, identifier) in [("with/+", 7), ("with/#", 268_435_455)] {
        let filter = talk.topic(filter);
        talk.subscribe_as("self", json!({ "filter": filter, "qos": 1, "identifier": identifier }))?;
    }
    let sent = json!({
        "format": 1,
        "expiry": 3_600,
        "content_type": "text/plain; charset=utf-8",
        "response_topic": "re/ply",
        "correlation": "order 66",
        "user": [["name", "first"], ["name", "second"], ["größe", ""]],
    });
    for qos in 0..=2 {
        let command = json!({
            "topic": talk.topic("with/properties"), "payload": "some", "qos": qos, "retain": false, "properties": sent,
        });
        talk.ask("publish", "self", command)?;
        let mut seen = talk.receive("self", "with/properties", "some", qos.min(1))?;
        // autopaho keeps the last only.
        let identifiers = seen["identifiers"].take();
        let known = |number: &Value| [7, 268_435_455].iter().any(|known| number == known);
        let identifiers = identifiers.as_array().context("no identifiers")?;
        ensure!(!identifiers.is_empty() && identifiers.iter().all(known), "{identifiers:?}");
        let left = seen["expiry"].as_u64().context("no expiry")?;
        ensure!((3_500..=3_600).contains(&left), "{left} s are left");
        seen["expiry"] = sent["expiry"].clone();
        seen.as_object_mut().context("no properties")?.remove("identifiers");
        ensure!(seen == sent, "{sent} was sent, and {seen} came");
    }
    talk.disconnect("self")
}

fn retained(talk: &mut Talk<'_>) -> Result<()> {
    talk.connect("publisher", json!({}))?;
    for qos in 0..=2 {
        talk.publish_as("publisher", &format!("kept/{qos}"), "first", qos, true)?;
        talk.publish_as("publisher", &format!("kept/{qos}"), "last", qos, true)?;
    }
    talk.connect("subscriber", json!({}))?;
    for qos in 0..=2 {
        let topic = format!("kept/{qos}");
        talk.subscribe("subscriber", &topic, 2)?;
        talk.receive_as("subscriber", &topic, "last", qos, true)?;
        // Who is subscribed gets it as any message, and who comes later does not.
        talk.publish_as("publisher", &topic, "", qos, true)?;
        talk.receive("subscriber", &topic, "", qos)?;
    }
    talk.connect("late", json!({}))?;
    talk.subscribe("late", "kept/#", 2)?;
    talk.publish("publisher", "kept/0", "live", 1)?;
    talk.receive("late", "kept/0", "live", 1)?;
    talk.disconnect("late")?;
    talk.disconnect("subscriber")?;
    talk.disconnect("publisher")
}

fn shared(talk: &mut Talk<'_>) -> Result<()> {
    const MEMBERS: [&str; 2] = ["member 1", "member 2"];
    let filter = format!("$share/group/{}", talk.topic("work/+"));
    for member in MEMBERS {
        talk.connect(member, json!({}))?;
        talk.subscribe_as(member, json!({ "filter": filter, "qos": 1 }))?;
    }
    talk.connect("publisher", json!({}))?;
    let all: Vec<String> = (0..10).map(|number| format!("piece {number}")).collect();
    for piece in &all {
        talk.publish("publisher", "work/any", piece, 1)?;
    }
    let mut done = Vec::new();
    for _ in 0..all.len() / MEMBERS.len() {
        for member in MEMBERS {
            let answer = talk.ask("receive", member, json!({}))?;
            done.push(answer["payload"].as_str().context("no payload")?.to_owned());
        }
    }
    done.sort_unstable();
    ensure!(done == all, "{all:?} were published, and {done:?} came");
    talk.disconnect(MEMBERS[0])?;
    for number in 0..2 {
        let piece = format!("alone {number}");
        talk.publish("publisher", "work/any", &piece, 1)?;
        talk.receive(MEMBERS[1], "work/any", &piece, 1)?;
    }
    talk.disconnect(MEMBERS[1])?;
    talk.disconnect("publisher")
}

fn kept_session(talk: &mut Talk<'_>) -> Result<()> {
    talk.connect_again("sleeper", false)?;
    talk.subscribe("sleeper", "news/+", 2)?;
    talk.cut("sleeper")?;
    talk.connect("publisher", json!({}))?;
    for qos in 1..=2 {
        talk.publish("publisher", &format!("news/{qos}"), "meanwhile", qos)?;
    }
    talk.connect_again("sleeper", true)?;
    for qos in 1..=2 {
        talk.receive("sleeper", &format!("news/{qos}"), "meanwhile", qos)?;
    }
    talk.publish("publisher", "news/0", "live", 0)?;
    talk.receive("sleeper", "news/0", "live", 0)?;
    talk.disconnect("publisher")?;
    talk.disconnect("sleeper")?;
    // Clean: the session goes.
    talk.connect("sleeper", json!({}))?;
    talk.disconnect("sleeper")?;
    talk.connect_again("sleeper", false)?;
    talk.disconnect("sleeper")
}

fn before_restart(talk: &mut Talk<'_>) -> Result<()> {
    talk.connect_again("sleeper", false)?;
    talk.subscribe("sleeper", "news/+", 2)?;
    talk.cut("sleeper")?;
    talk.connect("publisher", json!({}))?;
    for qos in 1..=2 {
        talk.publish("publisher", &format!("news/{qos}"), "before", qos)?;
    }
    talk.publish_as("publisher", "kept", "retained", 1, true)?;
    talk.disconnect("publisher")?;
    // It stays, and has nothing that it might have acknowledged in vain.
    talk.connect_again("awake", false)?;
    talk.subscribe("awake", "news/+", 2)
}

fn after_restart(talk: &mut Talk<'_>) -> Result<()> {
    talk.connect("publisher", json!({}))?;
    talk.publish("publisher", "news/2", "after", 2)?;
    talk.connect_again("sleeper", true)?;
    for qos in 1..=2 {
        talk.receive("sleeper", &format!("news/{qos}"), "before", qos)?;
    }
    talk.connect_again("awake", true)?;
    for client in ["sleeper", "awake"] {
        talk.receive(client, "news/2", "after", 2)?;
        talk.disconnect(client)?;
    }
    talk.subscribe("publisher", "kept", 1)?;
    talk.receive_as("publisher", "kept", "retained", 1, true)?;
    talk.disconnect("publisher")
}
