//! The processes, who gets a turn, what goes wrong, and the calm at the end.

use std::time::Duration;

use rand::{Rng as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};
use tbmq_bus::{Bus as _, TopicPartition};
use tbmq_integration::{Millis, cleanup::Stage};
use tbmq_proto::{
    ids::{IntegrationId, ShardId},
    partition::for_shard,
};

use crate::{
    Options, Report,
    books::{Books, Invariant},
    control::{Call, Replica},
    data::DataPlane,
    env::{Env, note, short},
    executor::Executor,
    net::{Ghost, Host, Net, Weather},
    remote::{Mode, Remote},
    settings::{DOWNLINK_PARTITIONS, INTEGRATIONS, SESSION},
    sql::Sql,
    trace::Trace,
};

/// Steps with faults.
const STEPS: u32 = 1_500;

/// Things that a process does in one step, at most.
const ACTIONS_MAX: u32 = 16;

/// Until then nothing goes wrong.
const FAIR: Millis = Millis(4_000);

/// Rounds in which everything must settle, of 100 ms or more.
const ROUNDS: u32 = 2_000;

const CONTROLS: [&str; 2] = ["cp1", "cp2"];
const EXECUTORS: [&str; 2] = ["ie1", "ie2"];
const DATA: &str = "dp1";

/// Names of topics that clients publish on.
const TOPICS: [&str; 4] = ["a", "a/b", "c", "$x"];
const FILTERS: [&str; 6] = ["#", "a/#", "+", "c", "a/+", "+/b"];

/// Everything.
pub(crate) struct World {
    env: Env,
    controls: Vec<Replica>,
    executors: Vec<Executor>,
    data: Option<DataPlane>,
    ghosts: Vec<Ghost>,
    ids: Vec<IntegrationId>,
    starts: u64,
    publishes: u64,
    sql_until: Millis,
    /// Somebody is to be frozen at a tender point.
    is_lurking: bool,
}

/// One of the processes.
#[derive(Clone, Copy, Debug)]
enum Which {
    Control(usize),
    Executor(usize),
    Data,
}

impl World {
    pub(crate) fn new(seed: u64, options: Options) -> Self {
        let net = Net::new();
        let books = Books::new(&net);
        let env = Env {
            rng: StdRng::seed_from_u64(seed),
            now: Millis(0),
            is_calm: false,
            bug: options.bug,
            net,
            sql: Sql::default(),
            remote: Remote::default(),
            books,
            trace: Trace::new(options.keeps_lines),
        };
        let mut world = Self {
            env,
            controls: Vec::new(),
            executors: Vec::new(),
            data: None,
            ghosts: Vec::new(),
            ids: Vec::new(),
            starts: 0,
            publishes: 0,
            sql_until: Millis(0),
            is_lurking: false,
        };
        world.ids = (0..INTEGRATIONS).map(|_| IntegrationId(world.env.uuid())).collect();
        world
    }

    pub(crate) fn report(self) -> Report {
        Report { trace: self.env.trace, counts: self.env.books.counts, violation: self.env.books.violation }
    }

    /// Runs to the end, or to the first violation.
    pub(crate) fn run(&mut self) {
        self.start_missing();
        for _ in 0..STEPS {
            self.step();
            if !self.is_well() {
                return;
            }
        }
        self.calm_down();
        if !self.settle("after the faults") {
            return;
        }
        // What was written last must be what runs, also after everything else has gone.
        note!(self.env, "compaction, and everything starts anew");
        self.env.net.clean();
        for index in (0..self.controls.len()).rev() {
            self.crash(Which::Control(index));
        }
        for index in (0..self.executors.len()).rev() {
            self.crash(Which::Executor(index));
        }
        self.crash(Which::Data);
        self.start_missing();
        self.settle("after compaction and restart");
    }

    fn is_well(&mut self) -> bool {
        self.env.books.observe(&self.env.net);
        for executor in &self.executors {
            executor.check(&mut self.env);
        }
        self.env.books.violation.is_none()
    }

    // --- one step ------------------------------------------------------------------------------------------------

    fn step(&mut self) {
        match self.env.rng.random_range(0..1000) {
            0..200 => self.pass_some(),
            200..216 => self.operate(),
            216..300 => self.publish(),
            300..311 if self.env.now > FAIR => self.go_wrong(),
            311..319 if self.env.now > FAIR => self.change_remote(),
            319..329 => self.start_missing(),
            329..335 if self.env.now > FAIR => self.change_weather(),
            _ => self.turn(),
        }
    }

    /// A process does a few things.
    fn turn(&mut self) {
        let Some(which) = self.pick(true) else { return };
        for _ in 0..self.env.rng.random_range(1..=ACTIONS_MAX) {
            let action = self.env.rng.random_range(0..240);
            match which {
                Which::Control(index) => self.controls[index].turn(&mut self.env, action),
                Which::Executor(index) => self.executors[index].turn(&mut self.env, action),
                Which::Data => {
                    if let Some(data) = &mut self.data {
                        data.turn(&mut self.env, action);
                    }
                }
            }
            let is_over = match which {
                Which::Control(index) => self.controls[index].is_over,
                Which::Executor(index) => self.executors[index].is_over,
                Which::Data => false,
            };
            if is_over {
                return self.crash(which);
            }
        }
        if self.is_lurking {
            self.lurk(which);
        }
    }

    /// A process; executors more often than others.
    fn pick(&mut self, is_awake: bool) -> Option<Which> {
        let mut all: Vec<Which> = Vec::new();
        for (index, control) in self.controls.iter().enumerate() {
            if !(is_awake && control.host.is_frozen()) {
                all.push(Which::Control(index));
            }
        }
        for (index, executor) in self.executors.iter().enumerate() {
            if !(is_awake && executor.host.is_frozen()) {
                all.push(Which::Executor(index));
                all.push(Which::Executor(index));
            }
        }
        if self.data.as_ref().is_some_and(|data| !(is_awake && data.host.is_frozen())) {
            all.push(Which::Data);
        }
        all.choose(&mut self.env.rng).copied()
    }

    fn host(&mut self, which: Which) -> Option<&mut Host> {
        match which {
            Which::Control(index) => self.controls.get_mut(index).map(|control| &mut control.host),
            Which::Executor(index) => self.executors.get_mut(index).map(|executor| &mut executor.host),
            Which::Data => self.data.as_mut().map(|data| &mut data.host),
        }
    }

    fn hosts(&mut self) -> impl Iterator<Item = &mut Host> {
        let controls = self.controls.iter_mut().map(|control| &mut control.host);
        let executors = self.executors.iter_mut().map(|executor| &mut executor.host);
        controls.chain(executors).chain(self.data.iter_mut().map(|data| &mut data.host))
    }

    // --- time ----------------------------------------------------------------------------------------------------

    fn pass_some(&mut self) {
        let most = if self.env.rng.random_range(0..4) == 0 { 900 } else { 150 };
        let millis = self.env.rng.random_range(1..most);
        self.pass(Duration::from_millis(millis));
    }

    fn pass(&mut self, time: Duration) {
        self.env.now = self.env.now + time;
        let now = self.env.now;
        self.env.net.set_time(now);
        if self.env.sql.is_down && now >= self.sql_until {
            self.env.sql.is_down = false;
        }
        for host in self.hosts() {
            if host.weather != Weather::Clear && host.weather_until <= now {
                host.set_weather(Weather::Clear);
            }
        }
        for control in &mut self.controls {
            control.host.thaw(now);
        }
        if let Some(data) = &mut self.data {
            data.host.thaw(now);
        }
        for executor in &mut self.executors {
            // One that has just woken does whatever comes first.
            if !executor.host.is_frozen() {
                executor.finish_calls(&mut self.env);
                executor.poll_membership(&mut self.env);
            }
            executor.host.thaw(now);
        }
        // The members that the bus has not heard of for too long.
        for executor in &mut self.executors {
            executor.member().expire_if_silent(&self.env.net, now);
        }
        for control in &mut self.controls {
            control.member().expire_if_silent(&self.env.net, now);
        }
        self.ghosts.retain(|ghost| !ghost.expire_if_silent(&self.env.net, now));
        self.bury_replaced();
    }

    // --- operators and clients -----------------------------------------------------------------------------------

    fn operate(&mut self) {
        let index = self.env.rng.random_range(0..self.ids.len());
        let id = self.ids[index];
        let is_there = self.env.sql.row(id).is_some();
        let enabled = self.env.rng.random_range(0..4) != 0;
        let call = match self.env.rng.random_range(0..12) {
            _ if !is_there => {
                let shards = *[1, 1, 2, 3].choose(&mut self.env.rng).expect("there are some");
                Call::Create { id, enabled, configuration: self.configuration(), shards }
            }
            0..5 => Call::Update { id, enabled, configuration: self.configuration() },
            5..9 => Call::SetEnabled { id, enabled },
            9..11 => Call::Restart { id },
            _ => {
                // Its id is never used again; the operator makes another.
                let fresh = self.env.uuid();
                self.ids[index] = IntegrationId(fresh);
                Call::Delete { id }
            }
        };
        self.call(call);
    }

    fn call(&mut self, call: Call) {
        let awake: Vec<usize> =
            (0..self.controls.len()).filter(|index| !self.controls[*index].host.is_frozen()).collect();
        if let Some(index) = awake.choose(&mut self.env.rng).copied() {
            self.controls[index].call(&mut self.env, call);
        }
    }

    fn configuration(&mut self) -> String {
        let rng = &mut self.env.rng;
        let filter = FILTERS.choose(rng).expect("there are some");
        let other = FILTERS.choose(rng).expect("there are some");
        let strategy = ["SKIP_ALL", "RETRY_ALL", "RETRY_ALL"].choose(rng).expect("there are some");
        let retries = rng.random_range(0..3);
        let ordering = ["key", "none"].choose(rng).expect("there are some");
        let dead_letter: bool = rng.random();
        let client = if rng.random_range(0..6) == 0 { r#"{"refuse":true}"# } else { "{}" };
        format!(
            r#"{{"topicFilters":["{filter}","{other}"],"clientConfiguration":{client},"delivery":{{"ackStrategy":"{strategy}","retries":{retries},"ordering":"{ordering}","deadLetter":{dead_letter}}}}}"#
        )
    }

    fn publish(&mut self) {
        let Some(data) = self.data.as_mut().filter(|data| !data.host.is_frozen()) else { return };
        for _ in 0..self.env.rng.random_range(1..4) {
            self.publishes += 1;
            let topic = TOPICS.choose(&mut self.env.rng).expect("there are some");
            data.publish(&mut self.env, self.publishes, topic);
        }
    }

    fn change_remote(&mut self) {
        let id = *self.ids.choose(&mut self.env.rng).expect("there are some");
        let modes = [
            Mode::Up,
            Mode::Up,
            Mode::Up,
            Mode::Down,
            Mode::Slow,
            Mode::Silent,
            Mode::Refusing,
            Mode::Flapping,
        ];
        let mode = *modes.choose(&mut self.env.rng).expect("there are some");
        note!(self.env, "the remote end of {} is {mode:?}", short(id));
        self.env.remote.modes.insert(id, mode);
    }

    // --- faults --------------------------------------------------------------------------------------------------

    fn change_weather(&mut self) {
        let Some(which) = self.pick(false) else { return };
        let weather = if self.env.rng.random() { Weather::Flaky } else { Weather::Away };
        let millis = self.env.rng.random_range(100..9_000);
        let until = self.env.now + Duration::from_millis(millis);
        let Some(host) = self.host(which) else { return };
        host.set_weather(weather);
        host.weather_until = until;
        let service = host.service.clone();
        note!(self.env, "{service} finds the bus {weather:?} for {millis} ms");
    }

    fn go_wrong(&mut self) {
        match self.env.rng.random_range(0..100) {
            0..25 => {
                if let Some(which) = self.pick(false) {
                    self.crash(which);
                }
            }
            25..55 => self.freeze(),
            55..65 => self.remove_by_retention(),
            65..72 => self.lose_topic(),
            72..80 => {
                note!(self.env, "compaction");
                self.env.net.clean();
            }
            80..88 => {
                let group = self.env.net.catalogue.downlink_group(&self.env.net.kind);
                if let Some(executor) = self.executors.choose(&mut self.env.rng) {
                    note!(self.env, "{} is to lose its membership", executor.host.service);
                    executor.host.bus.lose_memberships(&group);
                }
            }
            88..94 => {
                let millis = self.env.rng.random_range(100..4_000);
                self.sql_until = self.env.now + Duration::from_millis(millis);
                self.env.sql.is_down = true;
                note!(self.env, "the store is away for {millis} ms");
            }
            _ => self.start_twin(),
        }
    }

    /// Now, or when somebody is at a tender point.
    fn freeze(&mut self) {
        if self.env.rng.random() {
            self.is_lurking = true;
        } else if let Some(which) = self.pick(true) {
            self.freeze_now(which, 500);
        }
    }

    /// Freezes an executor with a commit on its way, or a relayer between the store and the bus; then an operator
    /// changes what it was about to write.
    fn lurk(&mut self, which: Which) {
        let long = SESSION.as_millis() as u64 * 2;
        match which {
            Which::Control(index) => {
                let Some(id) = self.controls.get(index).and_then(Replica::is_about_to_write) else { return };
                self.is_lurking = false;
                self.freeze_now(which, long);
                let enabled = self.env.sql.row(id).is_some_and(|row| !row.enabled);
                self.call(Call::SetEnabled { id, enabled });
            }
            Which::Executor(index) => {
                let is_tender = self.executors.get(index).is_some_and(Executor::is_about_to_commit);
                if is_tender && self.env.rng.random_range(0..3) == 0 {
                    self.is_lurking = false;
                    self.freeze_now(which, long);
                }
            }
            Which::Data => {}
        }
    }

    fn freeze_now(&mut self, which: Which, shortest: u64) {
        let longest = SESSION.as_millis() as u64 * 3;
        let millis = self.env.rng.random_range(shortest..longest);
        let until = self.env.now + Duration::from_millis(millis);
        let deaf = Duration::from_millis(self.env.rng.random_range(0..1_000));
        let Some(host) = self.host(which) else { return };
        host.frozen_until = Some(until);
        host.deaf_until = until + deaf;
        host.freezes += 1;
        let service = host.service.clone();
        note!(self.env, "{service} is frozen for {millis} ms");
        self.env.books.counts.freezes += 1;
    }

    fn crash(&mut self, which: Which) {
        self.env.books.counts.crashes += 1;
        match which {
            Which::Control(index) => {
                let mut control = self.controls.remove(index);
                note!(self.env, "{} {} dies", control.host.service, control.host.incarnation);
                self.ghosts.push(control.member().ghost());
            }
            Which::Executor(index) => {
                let mut executor = self.executors.remove(index);
                note!(self.env, "{} {} dies", executor.host.service, executor.host.incarnation);
                executor.crash(&mut self.env);
                self.ghosts.push(executor.member().ghost());
            }
            Which::Data => {
                if let Some(data) = self.data.take() {
                    note!(self.env, "{} {} dies", data.host.service, data.host.incarnation);
                }
            }
        }
    }

    /// Retention removes a backlog.
    fn remove_by_retention(&mut self) {
        let id = *self.ids.choose(&mut self.env.rng).expect("there are some");
        let Some(life) = self.env.sql.life(id) else { return };
        let (name, shards) = (self.env.net.messages(id, 1).name, life.shards);
        let at = TopicPartition::new(name, self.env.rng.random_range(0..shards));
        let admin = self.env.net.memory.admin();
        let Ok(bounds) = self.env.net.ask(admin.bounds(std::slice::from_ref(&at))) else { return };
        let before = self.env.rng.random_range(bounds[0].start..=bounds[0].end);
        self.env.books.observe(&self.env.net);
        if self.env.net.ask(admin.delete_records(&at, before)).is_ok() {
            note!(self.env, "retention removes below {before} of {at}");
        }
    }

    /// Somebody deletes a message topic, and perhaps makes it anew.
    fn lose_topic(&mut self) {
        let id = *self.ids.choose(&mut self.env.rng).expect("there are some");
        let Some(life) = self.env.sql.life(id) else { return };
        let shards = life.shards;
        let admin = self.env.net.memory.admin();
        let spec = self.env.net.messages(id, shards);
        self.env.books.observe(&self.env.net);
        if !self.env.net.ask(admin.delete_topic(&spec.name)).unwrap_or(false) {
            return;
        }
        self.env.books.topic_deleted(&self.env.net, id);
        self.env.books.counts.topics_lost += 1;
        let is_remade = self.env.rng.random();
        note!(self.env, "the topic of {} is lost, and made anew: {is_remade}", short(id));
        if is_remade {
            self.env.net.ask(admin.create_topic(&spec)).expect("a legal topic");
            self.env.books.topic_created(&self.env.net, id, shards);
        }
    }

    /// A second process with the id of one that runs.
    fn start_twin(&mut self) {
        if self.env.rng.random_range(0..3) == 0 {
            if let Some(service) = self.controls.choose(&mut self.env.rng).map(|c| c.host.service.clone())
                && self.controls.len() < CONTROLS.len() + 1
            {
                self.env.books.counts.twins += 1;
                note!(self.env, "{service} is started twice");
                let host = self.new_host(&service);
                let control = Replica::start(&mut self.env, host);
                self.controls.push(control);
            }
            return;
        }
        let Some(service) = self.executors.choose(&mut self.env.rng).map(|e| e.host.service.clone()) else {
            return;
        };
        if self.executors.len() < EXECUTORS.len() + 1 {
            self.env.books.counts.twins += 1;
            note!(self.env, "{service} is started twice");
            let host = self.new_host(&service);
            let executor = Executor::start(&mut self.env, host);
            self.executors.push(executor);
        }
    }

    // --- starts --------------------------------------------------------------------------------------------------

    fn new_host(&mut self, service: &str) -> Host {
        self.starts += 1;
        let seed = self.env.rng.random();
        Host::new(&self.env.net, service, self.starts, seed)
    }

    fn start_missing(&mut self) {
        for service in CONTROLS {
            if !self.controls.iter().any(|control| control.host.service == service) {
                let host = self.new_host(service);
                let control = Replica::start(&mut self.env, host);
                self.controls.push(control);
            }
        }
        for service in EXECUTORS {
            if !self.executors.iter().any(|executor| executor.host.service == service) {
                let host = self.new_host(service);
                let executor = Executor::start(&mut self.env, host);
                self.executors.push(executor);
            }
        }
        if self.data.is_none() {
            let host = self.new_host(DATA);
            self.data = Some(DataPlane::start(&mut self.env, host));
        }
    }

    // --- the end -------------------------------------------------------------------------------------------------

    fn calm_down(&mut self) {
        note!(self.env, "faults end");
        self.env.is_calm = true;
        self.env.sql.is_down = false;
        self.env.remote.modes.clear();
        for host in self.hosts() {
            host.frozen_until = None;
            host.deaf_until = Millis(0);
            host.set_weather(Weather::Clear);
        }
        self.start_missing();
    }

    /// Turns without faults until nothing is left to be done.
    fn settle(&mut self, when: &str) -> bool {
        let mut unsettled = String::new();
        for round in 0..ROUNDS {
            self.pass(Duration::from_millis(if round < 50 { 100 } else { 250 }));
            self.controls.iter_mut().for_each(|control| control.turn_all(&mut self.env));
            self.executors.iter_mut().for_each(|executor| executor.turn_all(&mut self.env));
            self.bury_replaced();
            if let Some(data) = &mut self.data {
                data.turn_all(&mut self.env);
            }
            if !self.is_well() {
                return false;
            }
            match self.unsettled() {
                None => {
                    note!(self.env, "settled {when}");
                    return true;
                }
                Some(what) => unsettled = what,
            }
        }
        self.env.books.violate(Invariant::Settles, format!("{when}: {unsettled}"));
        false
    }

    /// Processes whose id another one has taken over end by themselves.
    fn bury_replaced(&mut self) {
        while let Some(index) = self.executors.iter().position(|executor| executor.is_over) {
            self.crash(Which::Executor(index));
        }
        while let Some(index) = self.controls.iter().position(|control| control.is_over) {
            self.crash(Which::Control(index));
        }
    }

    /// What is not yet as it should be.
    fn unsettled(&self) -> Option<String> {
        let leaders = self.controls.iter().filter(|control| control.is_leading()).count();
        if leaders != 1 {
            return Some(format!("{leaders} control planes lead"));
        }
        if !self.controls.iter().all(Replica::is_idle) {
            return Some("a validation is pending".to_owned());
        }
        if let Some(mark) = self.env.sql.marks().first() {
            return Some(format!("{mark:?} is not relayed"));
        }
        let is_resting = |stage| matches!(stage, Stage::Live | Stage::Parked | Stage::AwaitTombstone { .. });
        if let Some(life) = self.env.sql.lives().find(|life| !is_resting(life.life.stage)) {
            return Some(format!("{life:?}"));
        }
        if let Some(executor) = self.executors.iter().find(|executor| !executor.is_settled()) {
            return Some(format!("{} is not restored", executor.host.service));
        }
        let Some(data) = self.data.as_ref().filter(|data| data.is_idle()) else {
            return Some("the data plane has publishes under way".to_owned());
        };
        for row in self.env.sql.rows() {
            let life = self.env.sql.life(row.id)?;
            let is_live = life.life.stage == Stage::Live;
            if is_live && data.revision(row.id) != Some(row.revision) {
                return Some(format!("the data plane holds {:?} of {row:?}", data.revision(row.id)));
            }
            if self.env.sql.projected(row.id) != Some(row.revision) {
                return Some(format!("{row:?} is not projected"));
            }
            for index in 0..life.shards {
                let shard = ShardId { integration: row.id, index };
                let what = self.shard_unsettled(shard, life.shards, row.enabled, row.revision);
                if let Some(what) = what {
                    return Some(format!("{shard} of {row:?}: {what}"));
                }
            }
            if row.enabled
                && let Some(open) = self.env.books.first_open(row.id)
            {
                return Some(format!("{} has no fate: {open:?}", row.id));
            }
        }
        let is_orphan = |executor: &Executor, life: &crate::sql::Life| {
            self.env.sql.row(life.id).is_none() && executor.is_running(life.id)
        };
        let orphan =
            self.env.sql.lives().find(|life| self.executors.iter().any(|executor| is_orphan(executor, life)));
        orphan.map(|life| format!("{} is deleted, and runs", life.id))
    }

    fn shard_unsettled(&self, shard: ShardId, count: u32, is_enabled: bool, revision: u64) -> Option<String> {
        let runners: Vec<_> = self
            .executors
            .iter()
            .flat_map(|executor| executor.runners(shard).into_iter().map(move |runner| (executor, runner)))
            .collect();
        if !is_enabled {
            return (!runners.is_empty()).then(|| "runs although it is disabled".to_owned());
        }
        let [(executor, (running, epoch))] = runners.as_slice() else {
            return Some(format!("runs {} times", runners.len()));
        };
        if *running != revision {
            return Some(format!("runs revision {running}"));
        }
        if !executor.is_drained(&self.env, shard) {
            return Some("has a backlog".to_owned());
        }
        let Some(status) = self.env.sql.status(shard) else { return Some("has no status".to_owned()) };
        if !matches!(status.event.as_str(), "STARTED" | "RESUMED")
            || status.service != executor.host.service
            || status.order.0 != *epoch
            || status.revision != revision
        {
            return Some(format!(
                "{} runs it under {epoch}, its status is {status:?}",
                executor.host.service
            ));
        }
        let partition = for_shard(&shard, count, DOWNLINK_PARTITIONS);
        let names_owner = |control: &Replica| {
            control
                .claimant(partition)
                .is_some_and(|(claim, service)| claim == epoch && *service == executor.host.service)
        };
        let all = self.controls.iter().all(names_owner);
        (!all).then(|| "a control plane names another owner".to_owned())
    }
}
