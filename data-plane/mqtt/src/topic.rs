//! Topic names and topic filters (MQTT 5.0 §4.7), with TBMQ's texts (spec §3.7.2).

/// What names and filters are allowed beyond the standard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Levels at most; 0 = no limit (`MQTT_TOPIC_MAX_SEGMENTS_COUNT`).
    pub segments_max: usize,
    /// Whether the filter `#` is allowed (`MQTT_SUBSCRIPTION_ROOT_MULTI_LVL_WILDCARD`).
    pub root_wildcard: bool,
}

impl Default for Rules {
    /// No limit, `#` allowed.
    fn default() -> Self {
        Self { segments_max: 0, root_wildcard: true }
    }
}

/// Why a text is no topic name or filter.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// MQTT-4.7.3-1
    #[error("Topic Names and Topic Filters must be at least one character long.")]
    Empty,
    /// MQTT-4.7.3-2
    #[error("Topic Names and Topic Filters must not include the null character (Unicode U+0000).")]
    Null,
    /// MQTT-4.7.3-3
    #[error("Topic Names and Topic Filters must not encode to more than 65535 bytes.")]
    TooLong,
    /// More levels than [`Rules::segments_max`].
    #[error("the topic has {found} levels, more than {max}")]
    TooManySegments {
        /// Levels found.
        found: usize,
        /// Levels allowed.
        max: usize,
    },
    /// MQTT-4.7.1-1
    #[error("'#' must be the last character of the topic filter and stand alone or after '/'")]
    MultiLevelWildcard,
    /// MQTT-4.7.1-2
    #[error("'+' must fill a whole level of the topic filter")]
    SingleLevelWildcard,
    /// Refused by [`Rules::root_wildcard`].
    #[error("the topic filter '#' is not allowed")]
    RootWildcard,
    /// MQTT-3.3.2-2
    #[error("a topic name must not contain the wildcards '#' and '+'")]
    WildcardInName,
    /// MQTT-4.8.2-1, MQTT-4.8.2-2
    #[error("a shared subscription is $share/<name>/<filter>, and the name holds no '/', '#' or '+'")]
    SharedSubscription,
}

fn check_common(text: &str, rules: &Rules) -> Result<(), Invalid> {
    if text.is_empty() {
        return Err(Invalid::Empty);
    }
    if text.len() > usize::from(u16::MAX) {
        return Err(Invalid::TooLong);
    }
    if text.contains('\0') {
        return Err(Invalid::Null);
    }
    if rules.segments_max > 0 {
        let found = text.bytes().filter(|byte| *byte == b'/').count() + 1;
        if found > rules.segments_max {
            return Err(Invalid::TooManySegments { found, max: rules.segments_max });
        }
    }
    Ok(())
}

/// Checks a topic name.
///
/// # Errors
/// The first rule that it breaks.
pub fn check_name(name: &str, rules: &Rules) -> Result<(), Invalid> {
    check_common(name, rules)?;
    if name.bytes().any(|byte| matches!(byte, b'#' | b'+')) { Err(Invalid::WildcardInName) } else { Ok(()) }
}

/// Checks a topic filter. A filter that begins with `$share/` passes as a plain one; see [`shared`].
///
/// # Errors
/// The first rule that it breaks.
pub fn check_filter(filter: &str, rules: &Rules) -> Result<(), Invalid> {
    check_common(filter, rules)?;
    let mut levels = filter.split('/').peekable();
    while let Some(level) = levels.next() {
        if level.contains('#') && (level != "#" || levels.peek().is_some()) {
            return Err(Invalid::MultiLevelWildcard);
        }
        if level.contains('+') && level != "+" {
            return Err(Invalid::SingleLevelWildcard);
        }
    }
    if filter == "#" && !rules.root_wildcard { Err(Invalid::RootWildcard) } else { Ok(()) }
}

/// The parts of a shared subscription's filter, `$share/<name>/<filter>`; `None` when it is a plain one.
///
/// # Errors
/// When it begins with `$share/` and is not of that form (MQTT-4.8.2).
pub fn shared(filter: &str) -> Result<Option<(&str, &str)>, Invalid> {
    let Some(rest) = filter.strip_prefix("$share/") else { return Ok(None) };
    match rest.split_once('/') {
        Some((name, filter)) if !name.is_empty() && !filter.is_empty() && !name.contains(['#', '+']) => {
            Ok(Some((name, filter)))
        }
        _ => Err(Invalid::SharedSubscription),
    }
}

/// Share name and plain filter of a valid filter.
pub fn parts(filter: &str) -> (Option<&str>, &str) {
    match shared(filter) {
        Ok(Some((name, plain))) => (Some(name), plain),
        Ok(None) | Err(_) => (None, filter),
    }
}

/// Whether a topic name matches a filter, both valid. A filter that begins with a wildcard does not match a name that
/// begins with `$` (MQTT-4.7.2-1).
pub fn matches(filter: &str, name: &str) -> bool {
    !(name.starts_with('$') && filter.starts_with(['#', '+'])) && levels_match(filter, name)
}

/// As [`matches`], level by level alone.
pub(crate) fn levels_match(filter: &str, name: &str) -> bool {
    let (filter, name) = (filter.as_bytes(), name.as_bytes());
    let mut at = 0;
    for (place, wanted) in filter.iter().enumerate() {
        match (wanted, name.get(at)) {
            (b'#', _) => return true,
            (b'+', _) => at += name[at..].iter().take_while(|byte| **byte != b'/').count(),
            (wanted, Some(byte)) if wanted == byte => at += 1,
            // `a/#` matches `a` (§4.7.1.2).
            (b'/', None) => return &filter[place..] == b"/#",
            _ => return false,
        }
    }
    at == name.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    // MQTT 5.0 §4.7.1.2, §4.7.1.3, §4.7.2.
    /// [MQTT-3.3.2-3] [MQTT-4.7.2-1] [MQTT5-3.3.2-3] [MQTT5-4.7.2-1]
    #[test]
    fn the_standards_examples_match_as_it_says() {
        for (filter, name, expected) in [
            ("sport/tennis/player1/#", "sport/tennis/player1", true),
            ("sport/tennis/player1/#", "sport/tennis/player1/ranking", true),
            ("sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon", true),
            ("sport/#", "sport", true),
            ("#", "a/b", true),
            ("sport/tennis/+", "sport/tennis/player1", true),
            ("sport/tennis/+", "sport/tennis/player1/ranking", false),
            ("sport/+", "sport", false),
            ("sport/+", "sport/", true),
            ("sport/+/#", "sport", false),
            ("sport/+/#", "sport/", true),
            ("sport/+/#", "sport/tennis/player1", true),
            ("sport", "sport/", false),
            ("sport/", "sport", false),
            ("+/tennis", "sport/tennis", true),
            ("+/tennis", "sport/tennis/", false),
            ("+/+", "/finance", true),
            ("/+", "/finance", true),
            ("+", "/finance", false),
            ("#", "$SYS/x", false),
            ("+/monitor/Clients", "$SYS/monitor/Clients", false),
            ("$SYS/#", "$SYS/x", true),
            ("$SYS/monitor/+", "$SYS/monitor/Clients", true),
            ("a", "A", false),
        ] {
            assert_eq!(matches(filter, name), expected, "{filter} {name}");
        }
    }

    /// [MQTT-4.7.1-1] [MQTT-4.7.1-2] [MQTT-4.7.1-3] [MQTT-4.7.3-1] [MQTT-4.7.3-2] [MQTT-4.7.3-3]
    /// [MQTT5-4.7.0-1] [MQTT5-4.7.1-1] [MQTT5-4.7.1-2] [MQTT5-4.7.3-1] [MQTT5-4.7.3-2] [MQTT5-4.7.3-3]
    #[test]
    fn bad_filters_and_names_are_refused_for_their_reason() {
        let rules = Rules { segments_max: 3, root_wildcard: false };
        for (filter, expected) in [
            ("", Err(Invalid::Empty)),
            ("a\0", Err(Invalid::Null)),
            ("a/#/b", Err(Invalid::MultiLevelWildcard)),
            ("a#", Err(Invalid::MultiLevelWildcard)),
            ("a+/b", Err(Invalid::SingleLevelWildcard)),
            ("#", Err(Invalid::RootWildcard)),
            ("a/b/c/d", Err(Invalid::TooManySegments { found: 4, max: 3 })),
            ("+/+/#", Ok(())),
        ] {
            assert_eq!(check_filter(filter, &rules), expected, "{filter:?}");
        }
        assert_eq!(check_filter(&"x".repeat(65_536), &rules), Err(Invalid::TooLong));
        assert_eq!(check_name("a/+", &rules), Err(Invalid::WildcardInName));
        assert_eq!(check_name("a/b", &rules), Ok(()));
    }

    /// [MQTT5-4.8.2-1] [MQTT5-4.8.2-2]
    #[test]
    fn a_shared_filter_is_taken_apart() {
        assert_eq!(shared("a/b"), Ok(None));
        assert_eq!(shared("$share/g/a/#"), Ok(Some(("g", "a/#"))));
        for bad in ["$share/", "$share/g", "$share//a", "$share/g+/a", "$share/g/"] {
            assert_eq!(shared(bad), Err(Invalid::SharedSubscription), "{bad}");
        }
    }
}
