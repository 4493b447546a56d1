//! A rule's topic filter: which names it matches, which filters are within it, and which it touches.

use super::Effect;

/// A filter with its placeholders filled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Filter {
    levels: Box<[Level]>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Level {
    /// `#`
    Any,
    /// `+`
    One,
    Literal(Box<str>),
}

impl Filter {
    /// Fills the placeholders of a valid filter; what comes from them is text, never a wildcard. `None` when a value is
    /// missing, or the rule would be about no topic: then it is about none. Of a rule that allows, a value does not
    /// leave its level either, nor begin a topic of the server; what is denied may be as deep as the value says.
    pub(super) fn fill(
        template: &str,
        effect: Effect,
        fill: &impl Fn(&str) -> Option<String>,
    ) -> Option<Self> {
        let mut levels = Vec::new();
        for text in template.split('/') {
            match text {
                "#" => levels.push(Level::Any),
                "+" => levels.push(Level::One),
                text => {
                    let literal = fill(text)?;
                    // A client that calls itself `$SYS` does not get the server's topics through `${clientId}/#`.
                    let is_reserved = levels.is_empty() && text.starts_with("${") && literal.starts_with('$');
                    let escapes = effect == Effect::Allow && (is_reserved || literal.contains('/'));
                    if escapes || literal.contains(['+', '#', '\0']) {
                        return None;
                    }
                    levels.extend(literal.split('/').map(|level| Level::Literal(level.into())));
                }
            }
        }
        Some(Self { levels: levels.into() })
    }

    fn begins_with_wildcard(&self) -> bool {
        !matches!(self.levels.first(), Some(Level::Literal(_)))
    }

    /// Whether it matches a topic name.
    pub(super) fn matches(&self, name: &str) -> bool {
        // MQTT-4.7.2-1
        if name.starts_with('$') && self.begins_with_wildcard() {
            return false;
        }
        let mut names = name.split('/');
        for level in &self.levels {
            match (level, names.next()) {
                (Level::Any, _) => return true,
                (Level::One, Some(_)) => {}
                (Level::Literal(own), Some(name)) if **own == *name => {}
                _ => return false,
            }
        }
        names.next().is_none()
    }

    /// Whether every name that matches the valid filter `other` matches this one.
    pub(super) fn contains(&self, other: &str) -> bool {
        if other.starts_with('$') && self.begins_with_wildcard() {
            return false;
        }
        // A name has one level at least: both are the same set.
        let other = if other == "#" { "+/#" } else { other };
        let mut others = other.split('/');
        for level in &self.levels {
            match (level, others.next()) {
                (Level::Any, _) => return true,
                (Level::One, Some(other)) if other != "#" => {}
                (Level::Literal(own), Some(other)) if **own == *other => {}
                _ => return false,
            }
        }
        others.next().is_none()
    }

    /// Whether a name matches both this and the valid filter `other`.
    pub(super) fn touches(&self, other: &str) -> bool {
        let own_reserved = matches!(self.levels.first(), Some(Level::Literal(own)) if own.starts_with('$'));
        if other.starts_with('$') && self.begins_with_wildcard()
            || own_reserved && other.starts_with(['+', '#'])
        {
            return false;
        }
        let mut others = other.split('/');
        let mut levels = self.levels.iter();
        loop {
            match (levels.next(), others.next()) {
                (Some(Level::Any), _) | (_, Some("#")) | (None, None) => return true,
                (None, _) | (_, None) => return false,
                (Some(Level::Literal(own)), Some(other)) if other != "+" && **own != *other => return false,
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tbmq_mqtt::topic;

    use super::*;

    fn filter(text: &str) -> Filter {
        Filter::fill(text, Effect::Allow, &|text| Some(text.to_owned())).unwrap()
    }

    /// All names of up to 4 levels of a small alphabet: enough to tell filters of up to 3 levels apart. The empty text,
    /// which is no name, is one here: `+` and `/#` have it in common, and it is not worth an exception.
    fn names() -> Vec<String> {
        let levels = ["", "a", "b", "$x"];
        let mut names: Vec<String> = levels.iter().map(|level| (*level).to_owned()).collect();
        let mut last = names.clone();
        for _ in 0..3 {
            last = last.iter().flat_map(|name| levels.map(|level| format!("{name}/{level}"))).collect();
            names.extend(last.iter().cloned());
        }
        names
    }

    fn filters() -> impl Strategy<Value = String> {
        let level = prop_oneof![Just("a"), Just("b"), Just("+"), Just(""), Just("$x")];
        (prop::collection::vec(level, 0..=3), any::<bool>())
            .prop_map(|(mut levels, open)| {
                if open {
                    levels.truncate(2);
                    levels.push("#");
                }
                levels.join("/")
            })
            .prop_filter("not empty", |filter| !filter.is_empty())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn what_a_filter_matches_contains_and_touches_is_what_the_names_say(one in filters(), other in filters()) {
            let filter = filter(&one);
            let names = names();
            for name in &names {
                prop_assert_eq!(filter.matches(name), topic::matches(&one, name), "{} {}", one, name);
            }
            let mut of_other = names.iter().filter(|name| topic::matches(&other, name)).peekable();
            prop_assert!(of_other.peek().is_some());
            let contained = of_other.clone().all(|name| filter.matches(name));
            prop_assert_eq!(filter.contains(&other), contained, "{} contains {}", one, other);
            let touched = of_other.any(|name| filter.matches(name));
            prop_assert_eq!(filter.touches(&other), touched, "{} touches {}", one, other);
        }
    }
}
