//! Clients that a service is asked about: a bounded number waits, of all and of one address, and as many are asked about
//! at a time as the service's settings say.

use std::{collections::HashMap, sync::Arc, time::Instant};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use parking_lot::Mutex;
use tbmq_auth::{http::Asker, provider::Provider};
use tokio::sync::mpsc;

use super::{
    Auth, Verdict,
    bearers::Change,
    hashing::Site,
    http::{Http, NoAnswer},
    judge::{Case, Work, skipped},
    metrics::Call,
    settings::Provided,
};

/// Clients that wait.
const WAITING_MAX: usize = 1000;

/// Of one IPv4 address, or one /64 of IPv6: those that wait and those that are asked about.
const SITE_MAX: usize = 100;

/// What is asked, and not answered yet.
#[derive(Debug)]
pub(super) struct Questions {
    sender: mpsc::Sender<Question>,
    /// Until somebody asks.
    receiver: Mutex<Option<mpsc::Receiver<Question>>>,
    of_site: Arc<Mutex<HashMap<Site, usize>>>,
}

impl Default for Questions {
    fn default() -> Self {
        let (sender, receiver) = mpsc::channel(WAITING_MAX);
        Self { sender, receiver: Mutex::new(Some(receiver)), of_site: Arc::default() }
    }
}

struct Question {
    case: Box<Case>,
    http: Arc<Http>,
    since: Instant,
    place: Place,
}

/// One of those that an address may have.
struct Place {
    site: Site,
    of_site: Arc<Mutex<HashMap<Site, usize>>>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut of_site = self.of_site.lock();
        if let Some(count) = of_site.get_mut(&self.site) {
            *count -= 1;
            if *count == 0 {
                of_site.remove(&self.site);
            }
        }
    }
}

impl Questions {
    fn place(&self, site: Site) -> Option<Place> {
        let mut of_site = self.of_site.lock();
        let count = of_site.entry(site).or_default();
        if *count >= SITE_MAX {
            return None;
        }
        *count += 1;
        Some(Place { site, of_site: self.of_site.clone() })
    }
}

impl Auth {
    /// Has the service asked about a client, in turn; the verdict comes to its mailbox.
    ///
    /// # Errors
    /// The case back, and why the service is not asked: too many wait.
    pub(super) fn question(&self, case: Box<Case>, http: Arc<Http>) -> Result<(), (Box<Case>, &'static str)> {
        const FULL: &str = "too many clients wait for the service";
        let Some(place) = self.questions.place(Site::from(case.claim.peer.ip())) else {
            self.metrics.called(Call::Full);
            return Err((case, "too many clients of the address wait for the service"));
        };
        let question = Question { case: case.detached(), http, since: Instant::now(), place };
        self.questions.sender.try_send(question).map_err(|error| {
            self.metrics.called(Call::Full);
            (error.into_inner().case, FULL)
        })
    }

    /// Asks the service about those that wait; does not return.
    pub(crate) async fn ask_services(self: &Arc<Self>) {
        let receiver = self.questions.receiver.lock().take();
        let Some(mut receiver) = receiver else { return std::future::pending().await };
        let mut asked = FuturesUnordered::new();
        let mut parallel = 1;
        loop {
            tokio::select! {
                Some(question) = receiver.recv(), if asked.len() < parallel => {
                    parallel = question.http.limits().parallel;
                    asked.push(Box::pin(self.ask_service(question)));
                }
                Some(()) = asked.next(), if !asked.is_empty() => {}
            }
        }
    }

    async fn ask_service(self: &Arc<Self>, question: Question) {
        let Question { case, http, since, place } = question;
        // Nobody waits for it any more.
        if case.mailbox.is_closed() {
            return;
        }
        let asker = Asker { identity: case.claim.identity(), password: case.claim.password.as_deref() };
        let answer = if since.elapsed() < http.limits().timeout {
            http.ask(&asker, || self.clock.now().epoch_ms).await
        } else {
            Err(NoAnswer::new(Call::Full, "the service was busy with others for too long"))
        };
        drop(place);
        match answer {
            Ok(answer) => {
                self.metrics.called(Call::Answered);
                let mailbox = case.mailbox.clone();
                match self.work(case, Work::Answer(http, answer)) {
                    Verdict::Later => {}
                    verdict => mailbox.judged(verdict),
                }
            }
            Err(none) => {
                self.metrics.called(none.call);
                self.resume(case, Provider::Http, skipped(Provider::Http, &none.reason));
            }
        }
    }

    /// Keeps the keys of tokens up to date, whichever settings there are; does not return.
    pub(crate) async fn follow_keys(&self) {
        loop {
            let settings = self.settings();
            let follow = async {
                match &settings.jwt {
                    Provided::Enabled(jwt) => {
                        // Its clients were not judged by its settings as long as there were no keys.
                        let known = || self.bearers.note_changed(Change::Provider(Provider::Jwt));
                        jwt.follow(&self.metrics.key_set_failures, known).await;
                    }
                    Provided::Disabled | Provided::Broken(_) => std::future::pending().await,
                }
            };
            tokio::select! {
                () = follow => {}
                () = self.settings_changed.notified() => {}
            }
        }
    }
}
