//! Which providers are asked about a CONNECT, in which order, and what their answers come to.
//!
//! ```text
//! Walk::new(enabled, in order) ──► begin ──► Try(provider) ──► answered(Skipped) ──► Try(the next) … ──► Refuse
//!                                                     └──► answered(Success | Failure) ──► Accept | Refuse
//! ```
//!
//! The asker does what it is told, at once or later, and comes back with the answer. SCRAM is never in the order: it is
//! for those who name a method.

use std::borrow::Cow;

use smallvec::SmallVec;

/// Who may know a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Provider {
    /// `MQTT_BASIC`
    Basic,
    /// `X_509`
    X509,
    /// `JWT`
    Jwt,
    /// `HTTP`
    Http,
    /// `SCRAM`
    Scram,
}

/// TBMQ's order.
pub const ORDER: [Provider; 4] = [Provider::Basic, Provider::X509, Provider::Jwt, Provider::Http];

impl Provider {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Basic, Self::X509, Self::Jwt, Self::Http, Self::Scram];

    /// TBMQ's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Basic => "MQTT_BASIC",
            Self::X509 => "X_509",
            Self::Jwt => "JWT",
            Self::Http => "HTTP",
            Self::Scram => "SCRAM",
        }
    }

    /// By TBMQ's name.
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|provider| provider.name() == name)
    }
}

/// All that are asked in turn: first those that are named, each once, then the others in TBMQ's order.
pub fn order(named: impl IntoIterator<Item = Provider>) -> [Provider; 4] {
    let mut order = SmallVec::<[Provider; 8]>::new();
    for provider in named.into_iter().chain(ORDER) {
        if provider != Provider::Scram && !order.contains(&provider) {
            order.push(provider);
        }
    }
    [order[0], order[1], order[2], order[3]]
}

/// Why a provider does not let a client in; not for the client.
pub type Reason = Cow<'static, str>;

/// A provider's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer<T> {
    /// It lets the client in, and with what.
    Success(T),
    /// It does not know the client; another provider may.
    Skipped(Reason),
    /// The client is not to be let in, whatever others say.
    Failure(Reason),
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next<T> {
    /// Ask this one.
    Ask(Provider),
    /// Let the client in.
    Accept(T),
    /// Refuse it, for these reasons: those of all who were asked, with ` | ` between them.
    Refuse(String),
}

/// One CONNECT on its way from provider to provider.
#[derive(Clone, Debug)]
pub struct Walk {
    /// The next one is the last.
    rest: SmallVec<[Provider; 4]>,
    reasons: String,
}

impl Walk {
    /// Along these providers.
    pub fn new(providers: impl DoubleEndedIterator<Item = Provider>) -> Self {
        Self { rest: providers.rev().collect(), reasons: String::new() }
    }

    /// Who is asked first. Without providers the client is refused.
    pub fn begin<T>(&mut self) -> Next<T> {
        match self.rest.pop() {
            Some(provider) => Next::Ask(provider),
            None => Next::Refuse(std::mem::take(&mut self.reasons)),
        }
    }

    /// What follows from the answer of the one that was asked.
    pub fn answered<T>(&mut self, answer: Answer<T>) -> Next<T> {
        let reason = match answer {
            Answer::Success(granted) => return Next::Accept(granted),
            Answer::Skipped(reason) => reason,
            Answer::Failure(reason) => {
                self.rest.clear();
                reason
            }
        };
        if !self.reasons.is_empty() {
            self.reasons.push_str(" | ");
        }
        self.reasons.push_str(&reason);
        self.begin()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use Provider::{Basic, Http, Jwt, Scram, X509};

    #[test]
    fn names_are_tbmqs_and_read_back() {
        for provider in Provider::ALL {
            assert_eq!(Provider::of_name(provider.name()), Some(provider));
        }
        assert_eq!(Provider::of_name("mqtt_basic"), None);
    }

    #[test]
    fn those_that_are_not_named_come_after_those_that_are() {
        assert_eq!(order([]), ORDER);
        assert_eq!(order([Http]), [Http, Basic, X509, Jwt]);
        assert_eq!(order([Jwt, Scram, Jwt, X509]), [Jwt, X509, Basic, Http]);
        assert_eq!(order([Http, Jwt, X509, Basic]), [Http, Jwt, X509, Basic]);
    }

    #[test]
    fn the_first_success_ends_the_walk() {
        let mut walk = Walk::new([Basic, Jwt, Http].into_iter());
        assert_eq!(walk.begin::<u8>(), Next::Ask(Basic));
        assert_eq!(walk.answered::<u8>(Answer::Skipped("no user".into())), Next::Ask(Jwt));
        assert_eq!(walk.answered(Answer::Success(7)), Next::Accept(7));
    }

    #[test]
    fn when_all_skip_the_client_is_refused_with_all_reasons() {
        let mut walk = Walk::new([Basic, X509].into_iter());
        assert_eq!(walk.begin::<()>(), Next::Ask(Basic));
        assert_eq!(walk.answered::<()>(Answer::Skipped("a".into())), Next::Ask(X509));
        assert_eq!(walk.answered::<()>(Answer::Skipped("b".into())), Next::Refuse("a | b".to_owned()));
    }

    #[test]
    fn a_failure_ends_the_walk_although_others_are_left() {
        let mut walk = Walk::new([Http, Basic].into_iter());
        assert_eq!(walk.begin::<()>(), Next::Ask(Http));
        assert_eq!(walk.answered::<()>(Answer::Failure("no".into())), Next::Refuse("no".to_owned()));
        assert_eq!(walk.begin::<()>(), Next::Refuse(String::new()), "and is over");
    }

    proptest! {
        #[test]
        fn nobody_is_let_in_without_a_success_and_nobody_is_asked_twice(
            named in prop::collection::vec(prop::sample::select(Provider::ALL.to_vec()), 0..8),
            answers in prop::collection::vec(0_u8..3, 4),
        ) {
            let order = order(named);
            let mut walk = Walk::new(order.into_iter());
            let mut asked = Vec::new();
            let mut next = walk.begin::<()>();
            while let Next::Ask(provider) = next {
                asked.push(provider);
                next = walk.answered(match answers[asked.len() - 1] {
                    0 => Answer::Success(()),
                    1 => Answer::Skipped("".into()),
                    _ => Answer::Failure("".into()),
                });
            }
            prop_assert_eq!(&asked[..], &order[..asked.len()]);
            let first = answers.iter().find(|answer| **answer != 1);
            prop_assert_eq!(matches!(next, Next::Accept(())), first == Some(&0));
        }
    }
}
