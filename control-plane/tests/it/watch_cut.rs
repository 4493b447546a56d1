//! A watcher that is cut at random points rebuilds exactly what is listed.
//!
//! It knows nothing but what a client is told to do: begin with the list, which the first bookmark ends; take what comes;
//! resume after the last revision that was heard; begin anew with a list that was cut. Meanwhile others create, change,
//! switch, restart and delete, and an executor reports, so that cuts fall between changes, into lists and into pages.
//! A run is repeated with the seed that it prints, but for what time decides.
#![allow(clippy::print_stdout, reason = "the seed of a run has to be known")]

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    time::Duration,
};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};
use tbmq_harness::{Need, ready};
use tbmq_proto::control::{
    Integration, ListIntegrationsRequest, RestartIntegrationRequest, WatchIntegrationsRequest,
    WatchIntegrationsResponse, watch_integrations_response::Type,
};
use tonic::{Code, Status, Streaming};

use crate::{
    support::{ControlPlane, DOCUMENT, Verdict, integration},
    watch::Shared,
};

/// What is known of all integrations, by their ids.
type Known = BTreeMap<String, Integration>;

/// Writers at once.
const WRITERS: u64 = 4;

/// Integrations of a writer, about.
const OWN: usize = 8;

/// A client that keeps a copy of all integrations.
#[derive(Debug, Default)]
struct Copy {
    known: Known,
    /// Where to resume; `None` while the list is not complete.
    place: Option<u64>,
    lists: u32,
    lists_cut: u32,
    /// Since the last that was complete.
    lists_cut_in_a_row: u32,
    resumed: u32,
}

impl Copy {
    async fn watch(&mut self, plane: &ControlPlane) -> Result<Streaming<WatchIntegrationsResponse>, Status> {
        let request = WatchIntegrationsRequest { after_revision: self.place, name: String::new() };
        match self.place {
            Some(_) => self.resumed += 1,
            None => {
                self.lists += 1;
                self.known.clear();
            }
        }
        Ok(plane.integrations.clone().watch_integrations(request).await?.into_inner())
    }

    fn take(&mut self, message: WatchIntegrationsResponse) {
        let (what, revision) = (message.r#type(), message.revision);
        match (what, message.integration) {
            (Type::Added | Type::Modified, Some(integration)) => {
                assert!(self.place.is_some() || what == Type::Added, "{what:?} in a list");
                let before = self.known.insert(integration.uid.clone(), integration.clone());
                let is_older = before.is_some_and(|before| before.revision > integration.revision);
                assert!(!is_older, "an older revision comes after a newer one: {integration:?}");
            }
            (Type::Deleted, Some(integration)) => drop(self.known.remove(&integration.uid)),
            (Type::Bookmark, None) => assert!(self.place.is_none_or(|place| place <= revision)),
            other => panic!("{other:?}"),
        }
        if what == Type::Bookmark || self.place.is_some() {
            assert!(
                self.place.is_none_or(|place| place <= revision),
                "{revision} comes after {:?}",
                self.place
            );
            self.place = Some(revision);
        } else {
            assert_eq!(revision, 0, "a list has no place to resume from");
        }
    }

    /// Watches until the cut: after so many messages, or so much time, whichever a run draws. After two lists that were
    /// cut the next is heard to its end, however slow the machine is: only then there is a place to resume from.
    async fn watch_until_cut(&mut self, plane: &ControlPlane, random: &mut StdRng) {
        let messages = if random.random_bool(0.5) { random.random_range(0..8 * OWN) } else { usize::MAX };
        // A list takes longer than what comes after it.
        let most = if self.place.is_none() { 80_000 } else { 30_000 };
        let time = Duration::from_micros(random.random_range(0..most));
        let is_whole = self.lists_cut_in_a_row == 2;
        let watching = async {
            let mut watch = self.watch(plane).await.unwrap();
            for _ in 0..if is_whole { usize::MAX } else { messages } {
                let message = watch.message().await.unwrap().expect("nobody else ends a watch");
                self.take(message);
                if is_whole && self.place.is_some() {
                    break;
                }
            }
        };
        let time = if is_whole { Duration::from_mins(1) } else { time };
        // The stream and what it holds are dropped in the middle of whatever they are at.
        let ended = tokio::time::timeout(time, watching).await;
        assert!(ended.is_ok() || !is_whole, "a list has no end");
        let is_cut = self.place.is_none();
        self.lists_cut += u32::from(is_cut);
        self.lists_cut_in_a_row = if is_cut { self.lists_cut_in_a_row + 1 } else { 0 };
    }

    /// Watches until it has heard of everything up to this revision.
    async fn watch_through(&mut self, plane: &ControlPlane, revision: u64) {
        let mut watch = self.watch(plane).await.unwrap();
        while self.place.is_none_or(|place| place < revision) {
            let message = tokio::time::timeout(Duration::from_secs(20), watch.message()).await;
            self.take(message.expect("a bookmark comes").unwrap().expect("nobody ends it"));
        }
    }
}

/// All integrations, in pages.
async fn list(plane: &ControlPlane) -> Known {
    let (mut all, mut page_token) = (Known::new(), String::new());
    loop {
        let request = ListIntegrationsRequest { page_size: 7, page_token, ..Default::default() };
        let page = plane.integrations.clone().list_integrations(request).await.unwrap().into_inner();
        all.extend(page.integrations.into_iter().map(|one| (one.uid.clone(), one)));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return all;
        }
    }
}

/// Changes whatever is drawn of its own integrations, through any replica, until it is told that it is over.
async fn write(
    planes: &[ControlPlane],
    writer: u64,
    seed: u64,
    all_writes: &AtomicU32,
    is_over: &AtomicBool,
) {
    let mut random = StdRng::seed_from_u64(seed ^ (writer + 1) << 32);
    let mut names: Vec<String> = Vec::new();
    let mut writes = 0;
    while !is_over.load(Ordering::Relaxed) {
        writes += 1;
        let plane = planes.choose(&mut random).unwrap();
        let draw = if names.len() < OWN / 2 { 0 } else { random.random_range(0..10) };
        let drawn = names.choose(&mut random).cloned().unwrap_or_default();
        match draw {
            0 | 1 if names.len() < 2 * OWN => {
                let created = plane.create(&format!("{seed} {writer} {writes}")).await.unwrap();
                names.push(created.name);
            }
            2..5 => {
                let change = Integration {
                    name: drawn,
                    description: format!("{writes}"),
                    configuration_json: DOCUMENT.replace("a/#", &format!("a/{writes}")),
                    ..integration("")
                };
                plane.update(change, &["description", "configuration_json"]).await.unwrap();
            }
            5 | 6 => drop(plane.enable(&drawn, random.random_bool(0.6)).await.unwrap()),
            7 => {
                let request = RestartIntegrationRequest { name: drawn, ..Default::default() };
                if let Err(status) = plane.integrations.clone().restart_integration(request).await {
                    assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
                }
            }
            _ => {
                plane.delete(&drawn).await.unwrap();
                names.retain(|name| *name != drawn);
            }
        }
        all_writes.fetch_add(1, Ordering::Relaxed);
    }
}

/// Cuts a watcher so often while others write, and compares what it knows with what is listed.
async fn rebuilds(shared: &Shared, planes: &[ControlPlane], seed: u64, cuts: u32) -> (u32, Copy) {
    println!("seed {seed}, {cuts} cuts");
    let store = shared.store().await;
    let mut copy = Copy::default();
    let (writes, is_over) = (AtomicU32::new(0), AtomicBool::new(false));
    let cutting = async {
        let mut random = StdRng::seed_from_u64(seed);
        let mut cut = 0;
        // Without writes there is nothing to be missed.
        while cut < cuts || writes.load(Ordering::Relaxed) <= cuts / 8 {
            cut += 1;
            // Replicas in turn: a place of one is a place of each.
            copy.watch_until_cut(&planes[cut as usize % planes.len()], &mut random).await;
            if random.random_bool(0.15) {
                copy.place = None;
            }
        }
        is_over.store(true, Ordering::Relaxed);
    };
    let writing = (0..WRITERS).map(|writer| write(planes, writer, seed, &writes, &is_over));
    tokio::join!(futures_util::future::join_all(writing), cutting);
    let writes = writes.into_inner();
    // What executors have to say of the last changes comes later.
    let end = loop {
        let before = store.revision().await.unwrap();
        let settled = list(&planes[0]).await.values().all(|one| {
            let status = one.status.as_ref().unwrap();
            !one.enabled || status.holders.iter().all(|holder| holder.observed_revision == one.revision)
        });
        tokio::time::sleep(Duration::from_millis(300)).await;
        if settled && store.revision().await.unwrap() == before {
            break before;
        }
    };
    for plane in planes {
        copy.watch_through(plane, end).await;
        assert_eq!(copy.known, list(plane).await, "seed {seed}: what a watch has told is not what is listed");
    }
    println!(
        "seed {seed}: {writes} writes, {end} revisions; {} resumed, {} lists of which {} were cut; {} are left",
        copy.resumed,
        copy.lists,
        copy.lists_cut,
        copy.known.len()
    );
    for integration in copy.known.values() {
        planes[0].delete(&integration.name).await.unwrap();
    }
    (writes, copy)
}

async fn watchers(shared: Shared, replicas: usize, seeds: Range<u64>, cuts: u32) {
    let mut planes = Vec::new();
    for replica in 0..replicas {
        planes.push(shared.replica(&format!("cp{replica}"), |_| {}).await);
    }
    let _executor = shared.cluster.executor(Verdict::Accept).await;
    let (mut writes, mut resumed, mut lists_cut) = (0, 0, 0);
    let all = cuts * seeds.clone().count() as u32;
    for seed in seeds {
        let (written, copy) = rebuilds(&shared, &planes, seed, cuts).await;
        writes += written;
        resumed += copy.resumed;
        lists_cut += copy.lists_cut;
    }
    println!("{all} cuts: {resumed} watches resumed, {lists_cut} lists cut, {writes} writes");
    assert!(resumed > all / 4 && lists_cut > all / 100 && writes > all / 8, "the cuts fell nowhere");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_cut_a_thousand_times_rebuilds_what_is_listed() {
    watchers(Shared::sqlite(), 1, 0..20, 50).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_cut_between_two_replicas_rebuilds_what_is_listed() {
    watchers(Shared::sqlite(), 2, 20..25, 50).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_cut_between_two_replicas_on_postgres_rebuilds_what_is_listed() {
    let test = "a_watcher_cut_between_two_replicas_on_postgres_rebuilds_what_is_listed";
    if ready(test, &[Need::Postgres]) {
        watchers(Shared::postgres(), 2, 30..35, 50).await;
    }
}
