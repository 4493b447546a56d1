//! One CONNECT, or AUTH, on its way to a verdict.

use std::{borrow::Cow, sync::Arc};

use bytes::Bytes;
use ring::rand::{SecureRandom as _, SystemRandom};
use tbmq_auth::{
    acl::Identity,
    basic, blocked,
    external::Outcome,
    index::Entry,
    provider::{Answer, Next, Provider, Walk},
    scram::{self, Algorithm, ClientFirst},
    token::Judgement,
};
use tbmq_mqtt::packet::{ReasonCode, Text};

use super::{
    Access, Admission, Auth, Bearer, Claim, Refusal, Verdict,
    bearers::Proof,
    caller,
    hashing::{Full, Site},
    http::Http,
    jwks::Jwt,
    metrics::Refused,
    settings::{Provided, Settings},
};
use crate::mailbox::Mailbox;

/// What a stranger is refused for while nobody is asked for anything.
const NOT_PUBLIC: &str = "no authentication provider is enabled, and clients of other machines are accepted without one \
                          only with SECURITY_MQTT_ANONYMOUS_ENABLED=true";

/// An answer, and with what the client is let in.
pub(super) type Answered = Answer<Box<Admission>>;

/// A conversation that has begun with a challenge; dropped with the connection.
#[derive(Debug)]
pub(crate) struct Exchange {
    claim: Claim,
    method: Text,
    scram: scram::Exchange,
    scram_user: Box<str>,
    /// Of the user, if there is one.
    entry: Option<Arc<Entry>>,
    /// Of a client that is connected and proves again who it is: by what it came.
    again: Option<Arc<Bearer>>,
}

/// A CONNECT on its way from provider to provider.
pub(super) struct Case {
    pub(super) claim: Claim,
    settings: Arc<Settings>,
    pub(super) mailbox: Arc<Mailbox>,
    walk: Walk,
}

/// What became of a question.
enum Asked {
    Answered(Answered),
    /// It takes longer.
    Work(Work),
    /// A service is to be asked.
    Service(Arc<Http>),
}

/// What is not done on a thread that others wait for.
pub(super) enum Work {
    /// A password is hashed.
    Hash(basic::Attempt),
    /// A signature is checked.
    Token(Arc<Jwt>),
    /// An answer is read, which may bring rules.
    Answer(Arc<Http>, caller::Answer),
}

impl std::fmt::Debug for Claim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Claim").field("client_id", &self.client_id).finish_non_exhaustive()
    }
}

impl Claim {
    pub(super) fn identity(&self) -> Identity<'_> {
        Identity {
            client_id: &self.client_id,
            user_name: self.username.as_deref(),
            common_name: self.common_names.first().map(|name| &**name),
        }
    }

    /// On memory of its own, so that it does not keep the read buffer.
    fn detached(self) -> Self {
        let own = |bytes: Bytes| Bytes::copy_from_slice(&bytes);
        Self {
            username: self.username.as_ref().map(Text::detached),
            password: self.password.map(own),
            method: self.method.map(|(method, data)| (method.detached(), own(data))),
            ..self
        }
    }

    fn bearer(
        &self,
        provider: Provider,
        settings: &Settings,
        proof: Proof,
        scram_user: Option<&str>,
    ) -> Arc<Bearer> {
        Arc::new(Bearer {
            provider,
            generation: settings.generation(provider),
            proof,
            client_id: self.client_id.clone(),
            username: self.username.as_ref().map(Text::detached),
            common_names: self.common_names.clone(),
            scram_user: scram_user.map(Into::into),
        })
    }
}

impl Case {
    /// On memory of its own.
    pub(super) fn detached(self: Box<Self>) -> Box<Self> {
        let Self { claim, settings, mailbox, walk } = *self;
        Box::new(Self { claim: claim.detached(), settings, mailbox, walk })
    }
}

impl Admission {
    /// Of a client that nobody asks for anything.
    fn of_everybody() -> Self {
        Self {
            access: Access::Everything,
            client_type: tbmq_auth::credentials::ClientType::Device,
            details: Box::default(),
            bearer: None,
            server_final: None,
            expires_at_ms: None,
        }
    }
}

impl Auth {
    /// Judges a CONNECT. Takes microseconds; what takes longer comes [`Verdict::Later`].
    pub(crate) fn judge(
        self: &Arc<Self>,
        claim: Claim,
        mailbox: &Arc<Mailbox>,
        exchange: &mut Option<Box<Exchange>>,
    ) -> Verdict {
        *exchange = None;
        let settings = self.settings();
        if let Some(refused) = self.blocked(&claim) {
            return refused;
        }
        if claim.method.is_some() {
            return self.challenge(&settings, claim, None, exchange);
        }
        if settings.are_open() {
            if !claim.is_local && !self.is_public {
                self.metrics.refused(Refused::NotAuthorized);
                return self.refuse(&claim, ReasonCode::NotAuthorized, NOT_PUBLIC);
            }
            return Verdict::Accept(Box::new(Admission::of_everybody()));
        }
        let mut walk = Walk::new(settings.asked());
        let next = walk.begin();
        let case = Case { claim, settings, mailbox: mailbox.clone(), walk };
        self.walk(Box::new(case), next)
    }

    fn blocked(&self, claim: &Claim) -> Option<Verdict> {
        let client = blocked::Client {
            client_id: &claim.client_id,
            user_name: claim.username.as_deref(),
            address: claim.peer.ip(),
        };
        let who = self.blocks.find(self.clock.now().epoch_ms, client)?;
        self.metrics.refused(Refused::Blocked);
        Some(self.refuse(claim, ReasonCode::Banned, &format!("blocked by {}", who.key())))
    }

    /// Asks until there is a verdict, or an answer takes longer; then it comes to the mailbox.
    fn walk(self: &Arc<Self>, mut case: Box<Case>, mut next: Next<Box<Admission>>) -> Verdict {
        loop {
            match next {
                Next::Ask(provider) => match self.ask(provider, &case) {
                    Asked::Answered(answer) => next = self.answered(&mut case, provider, answer),
                    Asked::Work(work) => return self.work(case, work),
                    Asked::Service(http) => match self.question(case, http) {
                        Ok(()) => return Verdict::Later,
                        Err((back, reason)) => {
                            case = back;
                            next = self.answered(&mut case, provider, skipped(provider, reason));
                        }
                    },
                },
                Next::Accept(admission) => return Verdict::Accept(admission),
                Next::Refuse(reasons) => {
                    self.metrics.refused(Refused::NotAuthorized);
                    let reasons = if reasons.is_empty() { "no authentication method" } else { &reasons };
                    return self.refuse(&case.claim, ReasonCode::NotAuthorized, reasons);
                }
            }
        }
    }

    fn answered(&self, case: &mut Case, provider: Provider, answer: Answered) -> Next<Box<Admission>> {
        self.metrics.answered(provider, &answer);
        case.walk.answered(answer)
    }

    fn ask(&self, provider: Provider, case: &Case) -> Asked {
        let Case { claim, settings, .. } = case;
        let answer = match provider {
            Provider::Basic => match &settings.basic {
                Provided::Enabled(strategy) => {
                    let said = basic::Claim {
                        client_id: &claim.client_id,
                        user_name: claim.username.as_deref(),
                        password: claim.password.as_deref(),
                    };
                    let now_ms = self.clock.now().monotonic_ms;
                    let verdict = basic::judge(&self.index.read(), &self.verified, *strategy, now_ms, said);
                    match verdict {
                        basic::Verdict::Accepted(entry) => grant(provider, settings, &entry, claim, None),
                        basic::Verdict::Refused => skipped(provider, "no credential without a password"),
                        basic::Verdict::Hash(attempt) => return Asked::Work(Work::Hash(attempt)),
                    }
                }
                other => unusable(provider, other),
            },
            Provider::X509 => match &settings.x509 {
                Provided::Enabled(()) => self.x509(settings, claim),
                other => unusable(provider, other),
            },
            Provider::Jwt => match &settings.jwt {
                Provided::Enabled(jwt) => return Asked::Work(Work::Token(jwt.clone())),
                other => unusable(provider, other),
            },
            Provider::Http => match &settings.http {
                Provided::Enabled(http) => return Asked::Service(http.clone()),
                other => unusable(provider, other),
            },
            Provider::Scram => skipped(provider, "it needs an authentication method"),
        };
        Asked::Answered(answer)
    }

    fn x509(&self, settings: &Settings, claim: &Claim) -> Answered {
        if claim.common_names.is_empty() {
            return skipped(Provider::X509, "no client certificate with a common name");
        }
        let found = self.index.read().x509(claim.common_names.iter().map(|name| &**name));
        match found {
            Some(entry) => grant(Provider::X509, settings, &entry, claim, None),
            None => skipped(Provider::X509, "no credential for a common name of the chain"),
        }
    }

    /// Has something done on a thread for that, and goes on then.
    pub(super) fn work(self: &Arc<Self>, case: Box<Case>, work: Work) -> Verdict {
        let site = Site::from(case.claim.peer.ip());
        let case = case.detached();
        let auth = self.clone();
        let job = move || {
            // Nobody waits for it any more.
            if case.mailbox.is_closed() {
                return;
            }
            let (provider, answer) = auth.done(&case, work);
            auth.resume(case, provider, answer);
        };
        match self.hashing.submit(site, Box::new(job)) {
            Ok(()) => Verdict::Later,
            Err(full) => {
                let (label, text) = match full {
                    Full::Queue => (Refused::QueueFull, "too many passwords wait to be hashed"),
                    Full::Site => (Refused::AddressQueueFull, "too many passwords of the address wait"),
                };
                self.metrics.refused(label);
                Verdict::Refuse(Refusal { reason: ReasonCode::QuotaExceeded, text: text.into() })
            }
        }
    }

    fn done(&self, case: &Case, work: Work) -> (Provider, Answered) {
        let Case { claim, settings, .. } = case;
        let now = self.clock.now();
        match work {
            Work::Hash(attempt) => {
                let found = attempt.run(&self.verified, now.monotonic_ms);
                self.metrics.hashes.inc();
                let answer = match found {
                    Some(entry) => grant(Provider::Basic, settings, &entry, claim, None),
                    None => skipped(Provider::Basic, "no credential with this password"),
                };
                (Provider::Basic, answer)
            }
            Work::Token(jwt) => {
                let Judgement { outcome, kept, .. } =
                    jwt.judge(claim.password.as_deref(), &claim.identity(), now.epoch_ms);
                let bearer = kept.map(|kept| claim.bearer(Provider::Jwt, settings, Proof::Token(kept), None));
                (Provider::Jwt, of_outside(Provider::Jwt, outcome, bearer))
            }
            Work::Answer(http, answer) => {
                let outcome = http.judge(&answer, &claim.identity());
                let bearer = claim.bearer(Provider::Http, settings, Proof::Answer, None);
                (Provider::Http, of_outside(Provider::Http, outcome, Some(bearer)))
            }
        }
    }

    /// Goes on with an answer that has taken longer; the verdict comes to the mailbox.
    pub(super) fn resume(self: &Arc<Self>, mut case: Box<Case>, provider: Provider, answer: Answered) {
        let next = self.answered(&mut case, provider, answer);
        let mailbox = case.mailbox.clone();
        match self.walk(case, next) {
            Verdict::Later => {}
            verdict => mailbox.judged(verdict),
        }
    }

    /// Notes that a client is refused for what is not a matter of providers.
    pub(crate) fn note_refused(&self, claim: &Claim, text: &str) {
        self.metrics.refused(Refused::NotAuthorized);
        self.refuse(claim, ReasonCode::NotAuthorized, text);
    }

    fn refuse(&self, claim: &Claim, reason: ReasonCode, text: &str) -> Verdict {
        self.unauthorized.refused(claim, text, self.clock.now().epoch_ms);
        tracing::debug!(client_id = &*claim.client_id, reason = text, "a client is refused");
        Verdict::Refuse(Refusal { reason, text: text.into() })
    }

    /// Judges an AUTH 0x18 from the client.
    pub(crate) fn proceed(
        &self,
        exchange: &mut Option<Box<Exchange>>,
        method: &str,
        data: &[u8],
        _mailbox: &Arc<Mailbox>,
    ) -> Verdict {
        let Some(exchange) = exchange.take() else {
            let text = "an answer without a challenge".into();
            return Verdict::Refuse(Refusal { reason: ReasonCode::UnspecifiedError, text });
        };
        let Exchange { claim, method: begun, scram, scram_user, entry, again } = *exchange;
        // A client that is connected is told one thing, whatever is wrong.
        let reason = |reason| if again.is_some() { ReasonCode::NotAuthorized } else { reason };
        if method != &*begun {
            self.metrics.refused(Refused::Method);
            return self.refuse(&claim, reason(ReasonCode::BadAuthenticationMethod), "another method");
        }
        if data.is_empty() {
            self.metrics.refused(Refused::Method);
            return self.refuse(&claim, reason(ReasonCode::UnspecifiedError), "no authentication data");
        }
        let answer = match scram.finish(data) {
            Ok(server_final) => self.proved(&claim, entry, &scram_user, again.as_deref(), server_final),
            Err(refused) => skipped(Provider::Scram, &refused.to_string()),
        };
        self.metrics.answered(Provider::Scram, &answer);
        match answer {
            Answer::Success(admission) => Verdict::Accept(admission),
            Answer::Skipped(text) | Answer::Failure(text) => {
                self.metrics.refused(Refused::NotAuthorized);
                self.refuse(&claim, ReasonCode::NotAuthorized, &text)
            }
        }
    }

    /// The client has proved to be this user.
    fn proved(
        &self,
        claim: &Claim,
        begun: Option<Arc<Entry>>,
        scram_user: &str,
        again: Option<&Bearer>,
        server_final: String,
    ) -> Answered {
        // As it is by now: it may have changed since the challenge.
        let entry = begun.and_then(|begun| {
            let current = self.index.read().get(begun.id()).cloned()?;
            (current.scram_keys() == begun.scram_keys()).then_some(current)
        });
        let Some(entry) = entry else {
            return skipped(Provider::Scram, "the credential has changed meanwhile");
        };
        if again.is_some_and(|bearer| bearer.credentials() != Some(entry.id())) {
            return skipped(Provider::Scram, "another user than the one that connected");
        }
        let mut answer = grant(Provider::Scram, &self.settings(), &entry, claim, Some(scram_user));
        if let Answer::Success(admission) = &mut answer {
            admission.server_final = Some(server_final.into());
        }
        answer
    }

    /// Judges an AUTH 0x19 of a client that came as `bearer`. A refusal is the reason of DISCONNECT.
    pub(crate) fn begin_again(
        &self,
        claim: Claim,
        bearer: Option<&Arc<Bearer>>,
        _mailbox: &Arc<Mailbox>,
        exchange: &mut Option<Box<Exchange>>,
    ) -> Verdict {
        *exchange = None;
        let settings = self.settings();
        match bearer {
            Some(bearer) => self.challenge(&settings, claim, Some(bearer.clone()), exchange),
            None => self.refuse(&claim, ReasonCode::NotAuthorized, "the client came without a method"),
        }
    }

    /// Answers client-first.
    fn challenge(
        &self,
        settings: &Settings,
        claim: Claim,
        again: Option<Arc<Bearer>>,
        exchange: &mut Option<Box<Exchange>>,
    ) -> Verdict {
        let first = match Self::first(settings, &claim) {
            Ok(first) => first,
            Err((reason, text)) => {
                let label = match reason {
                    ReasonCode::NotAuthorized => Refused::NotAuthorized,
                    _ => Refused::Method,
                };
                self.metrics.refused(label);
                let reason = if again.is_some() { ReasonCode::NotAuthorized } else { reason };
                return self.refuse(&claim, reason, &text);
            }
        };
        let (algorithm, method, first) = first;
        let mut random = [0; 18];
        SystemRandom::new().fill(&mut random).expect("the system has random bytes");
        let entry = self.index.read().scram(first.user_name());
        let keys = entry.as_ref().and_then(|entry| entry.scram_keys());
        let nonce = scram::nonce(random);
        let (scram, server_first) = scram::Exchange::start(algorithm, &first, keys, &settings.nobody, &nonce);
        let scram_user: Box<str> = first.user_name().into();
        // The user is who it proves to be, whatever CONNECT says beside that.
        let username = Some(Text::from(&*scram_user));
        let claim = Claim { username, password: None, method: None, ..claim.detached() };
        if let Some(refused) = self.blocked(&claim) {
            return refused;
        }
        *exchange = Some(Box::new(Exchange { claim, method, scram, scram_user, entry, again }));
        Verdict::Challenge(server_first.into())
    }

    fn first(
        settings: &Settings,
        claim: &Claim,
    ) -> Result<(Algorithm, Text, ClientFirst), (ReasonCode, Cow<'static, str>)> {
        let Some((method, data)) = &claim.method else {
            return Err((ReasonCode::BadAuthenticationMethod, "no authentication method".into()));
        };
        let Some(algorithm) = Algorithm::of_method(method) else {
            return Err((ReasonCode::BadAuthenticationMethod, "an unknown authentication method".into()));
        };
        if data.is_empty() {
            return Err((ReasonCode::UnspecifiedError, "no authentication data".into()));
        }
        match &settings.scram {
            Provided::Enabled(()) => {}
            Provided::Disabled => return Err((ReasonCode::NotAuthorized, "SCRAM is not enabled".into())),
            Provided::Broken(reason) => {
                return Err((ReasonCode::NotAuthorized, format!("SCRAM can't be used: {reason}").into()));
            }
        }
        let first = ClientFirst::parse(data)
            .map_err(|refused| (ReasonCode::NotAuthorized, refused.to_string().into()))?;
        Ok((algorithm, method.detached(), first))
    }
}

/// Lets a client in that no credential here is about.
fn of_outside(provider: Provider, outcome: Outcome, bearer: Option<Arc<Bearer>>) -> Answered {
    match outcome {
        Outcome::Accepted(accepted) => Answer::Success(Box::new(Admission {
            access: accepted.acl.into(),
            client_type: accepted.client_type,
            details: provider.name().into(),
            bearer,
            server_final: None,
            expires_at_ms: accepted.expires_at_ms,
        })),
        Outcome::Skipped(reason) => skipped(provider, &reason),
        Outcome::Refused(reason) => Answer::Failure(format!("{}: {reason}", provider.name()).into()),
    }
}

/// Lets a client in that has proved what this credential asks for, unless its rules give it nothing.
fn grant(
    provider: Provider,
    settings: &Settings,
    entry: &Entry,
    claim: &Claim,
    scram_user: Option<&str>,
) -> Answered {
    let proof = Proof::Credentials { id: entry.id(), revision: entry.revision() };
    match entry.acl(&claim.identity()) {
        Ok(acl) => Answer::Success(Box::new(Admission {
            access: acl.into(),
            client_type: entry.client_type(),
            details: format!("{}: {}", provider.name(), entry.name()).into(),
            bearer: Some(claim.bearer(provider, settings, proof, scram_user)),
            server_final: None,
            expires_at_ms: None,
        })),
        Err(nothing) => skipped(provider, &nothing.to_string()),
    }
}

pub(super) fn skipped(provider: Provider, reason: &str) -> Answered {
    Answer::Skipped(format!("{}: {reason}", provider.name()).into())
}

fn unusable<T>(provider: Provider, provided: &Provided<T>) -> Answered {
    match provided {
        Provided::Broken(reason) => skipped(provider, &format!("it can't be used: {reason}")),
        Provided::Disabled | Provided::Enabled(_) => skipped(provider, "it is not enabled"),
    }
}
