//! MQTT clients that we did not write. Each plays every [`Scenario`] in every version that it speaks on every road that it
//! can take, and prints a table of that, with what it can't do and why.

pub(crate) mod agent;
mod library;
mod mosquitto;
mod roads;
mod rumqttc;
mod scenario;
mod table;

use anyhow::{Context as _, Result};
use tbmq_e2e::deployment::{Deployment, Plane};
use tbmq_harness::{Need, libraries, ready};

use self::{
    agent::Program,
    library::Library,
    mosquitto::Mosquitto,
    roads::Roads,
    rumqttc::Rumqttc,
    scenario::{Place, Player, Scenario},
    table::{Lack, Table, VERSIONS},
};

/// What a client can't do, and why.
type Gaps = &'static [(Lack, &'static str)];

/// Lets a client play everything but what it lacks, with a broker of its own.
async fn play_everything(
    client: &'static str,
    gaps: Gaps,
    start: impl FnOnce() -> Result<Box<dyn Player>> + Send + 'static,
) -> Result<()> {
    tokio::task::spawn_blocking(move || {
        let roads = Roads::new()?;
        let mut deployment = Deployment::standalone_with(&roads.settings())?;
        let mut player = start()?;
        let mut table = Table::new(client, &roads, gaps);
        for scenario in Scenario::UNDISTURBED {
            for place in places(&roads, scenario, gaps) {
                play(&mut *player, scenario, place)?;
                table.add(scenario, place);
            }
        }
        for place in places(&roads, Scenario::BeforeRestart, gaps) {
            play(&mut *player, Scenario::BeforeRestart, place)?;
        }
        deployment.drain(Plane::All)?;
        deployment.start(Plane::All)?;
        for place in places(&roads, Scenario::AfterRestart, gaps) {
            play(&mut *player, Scenario::AfterRestart, place)?;
            table.add(Scenario::AfterRestart, place);
        }
        table.print()?;
        drop(player);
        deployment.drain_all()
    })
    .await?
}

/// Where a client plays a scenario.
fn places(roads: &Roads, scenario: Scenario, gaps: Gaps) -> impl Iterator<Item = Place<'_>> {
    let all = roads.all.iter().flat_map(|road| VERSIONS.map(|(version, _)| Place { road, version }));
    all.filter(move |place| {
        place.version >= scenario.since() && !gaps.iter().any(|(lack, _)| lack.is_at(*place))
    })
}

fn play(player: &mut dyn Player, scenario: Scenario, place: Place<'_>) -> Result<()> {
    player.play(scenario, place).with_context(|| {
        format!("{} over {}, protocol level {}", scenario.title(), place.road.name, place.version)
    })
}

fn program(library: libraries::Library) -> Result<Box<dyn Player>> {
    Ok(Box::new(Library(Program::start(library)?)))
}

#[tokio::test(flavor = "multi_thread")]
async fn paho_for_python_plays_every_scenario() -> Result<()> {
    let library = libraries::Library::PahoPython;
    if !ready("paho_for_python_plays_every_scenario", &[Need::Library(library)]) {
        return Ok(());
    }
    play_everything(library.name(), &[], move || program(library)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn mqtt_js_plays_every_scenario() -> Result<()> {
    let library = libraries::Library::MqttJs;
    if !ready("mqtt_js_plays_every_scenario", &[Need::Library(library)]) {
        return Ok(());
    }
    play_everything(library.name(), &[], move || program(library)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn autopaho_for_go_plays_every_scenario() -> Result<()> {
    const GAPS: Gaps = &[
        (Lack::Version(3), "no 3.1, it speaks 5.0 only"),
        (Lack::Version(4), "no 3.1.1, it speaks 5.0 only"),
        (Lack::Detail, "of a message's subscription identifiers it tells the last one only"),
    ];
    let library = libraries::Library::Autopaho;
    if !ready("autopaho_for_go_plays_every_scenario", &[Need::Library(library)]) {
        return Ok(());
    }
    play_everything(library.name(), GAPS, move || program(library)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn rumqttc_plays_every_scenario() -> Result<()> {
    const GAPS: Gaps = &[(Lack::Version(3), "no 3.1, it speaks 3.1.1 and 5.0")];
    play_everything("rumqttc", GAPS, || Ok(Box::new(Library(Box::new(Rumqttc::new()?))))).await
}

#[tokio::test(flavor = "multi_thread")]
async fn mosquittos_clients_play_every_scenario() -> Result<()> {
    const GAPS: Gaps = &[
        (Lack::Roads(&["ws", "wss"]), "Debian's have no WebSocket"),
        (Lack::Detail, "in 5.0 mosquitto_sub ends when the broker leaves, and has to be started again"),
    ];
    if !ready("mosquittos_clients_play_every_scenario", &[Need::Mosquitto]) {
        return Ok(());
    }
    play_everything("mosquitto_pub and mosquitto_sub", GAPS, || Ok(Box::<Mosquitto>::default())).await
}
