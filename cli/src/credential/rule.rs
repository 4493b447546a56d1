//! A rule as one line: `allow publish sensors/${clientId}/#`, `deny both qos=1,2 retain=yes regex:secret/.*`.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use tbmq_proto::control::{
    AccessRule,
    access_rule::{Action, Effect, Topic},
};

/// What a rule looks like, for messages and help.
pub(crate) const FORM: &str =
    "allow|deny publish|subscribe|both [qos=0,1,2] [retain=yes|no] FILTER|regex:PATTERN";

/// What begins something other than a filter.
const PREFIXES: [&str; 4] = ["regex:", "filter:", "qos=", "retain="];

/// A rule that is written and read as its line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Rule(pub(crate) AccessRule);

impl FromStr for Rule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = |problem: &str| format!("{text:?} is no rule: {problem}; a rule is {FORM}");
        let (effect, rest) = word(text);
        let effect = match effect {
            "allow" => Effect::Allow,
            "deny" => Effect::Deny,
            _ => return Err(wrong("it begins with allow or deny")),
        };
        let (action, mut rest) = word(rest);
        let action = match action {
            "publish" | "pub" => Action::Publish,
            "subscribe" | "sub" => Action::Subscribe,
            "both" => Action::Both,
            _ => return Err(wrong("then comes publish, subscribe or both")),
        };
        let mut rule = AccessRule { effect: effect.into(), action: action.into(), ..AccessRule::default() };
        loop {
            let (option, after) = word(rest);
            if let Some(qos) = option.strip_prefix("qos=") {
                for one in qos.split(',') {
                    match one {
                        "0" | "1" | "2" => rule.qos.push(one.parse().expect("a digit is a number")),
                        _ => return Err(wrong("qos is 0, 1, 2, or several of them as in qos=0,1")),
                    }
                }
            } else if let Some(retain) = option.strip_prefix("retain=") {
                rule.retain = Some(match retain {
                    "yes" => true,
                    "no" => false,
                    _ => return Err(wrong("retain is yes or no")),
                });
            } else {
                break;
            }
            rest = after;
        }
        let topic = match (rest.strip_prefix("regex:"), rest.strip_prefix("filter:")) {
            (Some(regex), _) => Topic::Regex(regex.to_owned()),
            (None, Some(filter)) => Topic::Filter(filter.to_owned()),
            (None, None) => Topic::Filter(rest.to_owned()),
        };
        if matches!(&topic, Topic::Filter(text) | Topic::Regex(text) if text.is_empty()) {
            return Err(wrong("it ends with a topic filter, or with regex: and a pattern"));
        }
        rule.topic = Some(topic);
        Ok(Self(rule))
    }
}

/// The first word, and what follows it.
fn word(text: &str) -> (&str, &str) {
    let text = text.trim_start();
    match text.split_once(' ') {
        Some((word, rest)) => (word, rest.trim_start()),
        None => (text, ""),
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(rule) = self;
        f.write_str(if rule.effect() == Effect::Deny { "deny" } else { "allow" })?;
        f.write_str(match rule.action() {
            Action::Publish => " publish",
            Action::Subscribe => " subscribe",
            Action::Both | Action::Unspecified => " both",
        })?;
        if !rule.qos.is_empty() {
            let qos: Vec<_> = rule.qos.iter().map(u32::to_string).collect();
            write!(f, " qos={}", qos.join(","))?;
        }
        if let Some(retain) = rule.retain {
            write!(f, " retain={}", if retain { "yes" } else { "no" })?;
        }
        match &rule.topic {
            Some(Topic::Regex(regex)) => write!(f, " regex:{regex}"),
            Some(Topic::Filter(filter)) => {
                let is_plain =
                    !filter.starts_with(' ') && !PREFIXES.iter().any(|other| filter.starts_with(other));
                write!(f, " {}{filter}", if is_plain { "" } else { "filter:" })
            }
            None => Ok(()),
        }
    }
}

impl TryFrom<String> for Rule {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Rule> for String {
    fn from(rule: Rule) -> Self {
        rule.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(effect: Effect, action: Action, topic: Topic) -> AccessRule {
        AccessRule {
            effect: effect.into(),
            action: action.into(),
            topic: Some(topic),
            ..AccessRule::default()
        }
    }

    #[test]
    fn a_line_says_all_that_a_rule_can_say_and_is_written_as_it_is_read() {
        let filter = |text: &str| Topic::Filter(text.to_owned());
        let regex = |text: &str| Topic::Regex(text.to_owned());
        for (line, expected) in [
            (
                "allow publish sensors/${clientId}/#",
                rule(Effect::Allow, Action::Publish, filter("sensors/${clientId}/#")),
            ),
            ("deny subscribe regex:a b|qos=1", rule(Effect::Deny, Action::Subscribe, regex("a b|qos=1"))),
            (
                "allow both qos=0,2 retain=no +/a b",
                AccessRule {
                    qos: vec![0, 2],
                    retain: Some(false),
                    ..rule(Effect::Allow, Action::Both, filter("+/a b"))
                },
            ),
            ("allow both filter:regex:x", rule(Effect::Allow, Action::Both, filter("regex:x"))),
            ("allow both filter: x", rule(Effect::Allow, Action::Both, filter(" x"))),
            (
                "deny publish retain=yes filter:qos=1",
                AccessRule { retain: Some(true), ..rule(Effect::Deny, Action::Publish, filter("qos=1")) },
            ),
        ] {
            let read: Rule = line.parse().unwrap();
            assert_eq!(read.0, expected, "{line}");
            assert_eq!(read.to_string(), line);
        }
        assert_eq!("allow  pub   a".parse::<Rule>().unwrap().to_string(), "allow publish a");
    }

    #[test]
    fn what_is_no_rule_is_refused_with_what_is_missing() {
        for (line, problem) in [
            ("", "it begins with allow or deny"),
            ("permit publish a", "it begins with allow or deny"),
            ("allow write a", "then comes publish, subscribe or both"),
            ("allow publish", "it ends with a topic filter"),
            ("allow publish regex:", "it ends with a topic filter"),
            ("allow publish qos=3 a", "qos is 0, 1, 2"),
            ("allow publish qos= a", "qos is 0, 1, 2"),
            ("allow publish retain=maybe a", "retain is yes or no"),
        ] {
            let error = line.parse::<Rule>().unwrap_err();
            assert!(error.contains(problem) && error.ends_with(FORM), "{line}: {error}");
        }
    }
}
