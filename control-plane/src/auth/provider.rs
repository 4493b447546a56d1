//! Which providers there are, and which fields of their configurations are secret.

use std::{collections::BTreeSet, sync::LazyLock};

use serde_json::{Value, json};
use tbmq_auth::{external::Invalid, http, token};
pub(crate) use tbmq_integration::provider::{sealed_for, unwrap, wrap};
use tbmq_integration::{entity::Violation, secret::ROOT};

use crate::secret;

/// All types, in TBMQ's order; SCRAM is asked by those alone who name it.
pub(crate) const TYPES: [&str; 5] = ["MQTT_BASIC", "X_509", "JWT", "HTTP", "SCRAM"];

/// Those that are asked one after the other, in the order that holds until another is set.
pub(crate) const PRIORITIES: [&str; 4] = ["MQTT_BASIC", "X_509", "JWT", "HTTP"];

/// Bytes of a configuration at most: it travels in one record.
pub(crate) const CONFIGURATION_BYTES_MAX: usize = 256 << 10;

/// Says which fields are secret: some names wherever they stand, and all headers, one of which may authorise.
static SCHEMA: LazyLock<Value> = LazyLock::new(|| {
    let secret = json!({ "writeOnly": true });
    json!({
        "properties": {
            "secret": secret,
            "password": secret,
            "privateKey": secret,
            "privateKeyPassword": secret,
            "token": secret,
            "headers": { "additionalProperties": secret },
        },
        "additionalProperties": { "$ref": "#" },
        "items": { "$ref": "#" },
    })
});

/// Which fields are secret of a document that [`wrap`] has made.
pub(crate) fn schema() -> &'static Value {
    &SCHEMA
}

/// The configuration with its secrets masked.
pub(crate) fn mask(configuration: &str) -> String {
    unwrap(&secret::mask(Some(schema()), &wrap(configuration))).to_owned()
}

/// The configuration with its masks replaced by what is stored.
///
/// # Errors
/// For each mask that has no stored secret, or whose target has changed.
pub(crate) fn unmask(configuration: &str, stored: Option<&str>) -> Result<String, Vec<Violation>> {
    let stored = stored.map(wrap);
    let whole = secret::unmask_with(Some(schema()), &wrap(configuration), stored.as_deref());
    let outside = |path: &str| path.strip_prefix(ROOT).unwrap_or(path).trim_start_matches('.').to_owned();
    whole.map(|whole| unwrap(&whole).to_owned()).map_err(|violations| {
        let place = |violation: Violation| Violation::new(outside(&violation.path), violation.text);
        violations.into_iter().map(place).collect()
    })
}

/// What is wrong with a configuration, as far as this control plane knows it.
pub(crate) fn check(kind: &str, configuration: &str) -> Vec<Violation> {
    let refuse = |path: &str, text: String| vec![Violation::new(path, text)];
    if configuration.len() > CONFIGURATION_BYTES_MAX {
        let text = format!("has {} bytes, more than {CONFIGURATION_BYTES_MAX}", configuration.len());
        return refuse("", text);
    }
    let Ok(Value::Object(document)) = serde_json::from_str::<Value>(configuration) else {
        return refuse("", "is not a JSON object".to_owned());
    };
    if configuration.contains('\0') {
        return refuse("", "must not contain U+0000".to_owned());
    }
    if let Some(named) = document.get("type")
        && named != kind
    {
        return refuse("type", format!("is {named}, but the provider is {kind}"));
    }
    let one_of = |field: &str, known: &[&str]| {
        let named = document.get(field).filter(|named| !named.is_null());
        let is_known = named.is_none_or(|named| named.as_str().is_some_and(|text| known.contains(&text)));
        if is_known { Vec::new() } else { refuse(field, format!("is one of {}", known.join(", "))) }
    };
    match kind {
        "MQTT_BASIC" => one_of("authStrategy", &["CLIENT_ID", "USERNAME", "CLIENT_ID_AND_USERNAME"]),
        "X_509" => {
            one_of("clientAuthType", &["CLIENT_AUTH_NONE", "CLIENT_AUTH_REQUESTED", "CLIENT_AUTH_REQUIRED"])
        }
        "JWT" | "HTTP" => one_of("defaultClientType", &["DEVICE", "APPLICATION"]),
        _ => Vec::new(),
    }
}

/// What is wrong with a configuration whose secrets are in their places, as the data planes read it. One that is off may
/// be empty. Takes milliseconds where there are many patterns.
pub(crate) fn check_whole(kind: &str, enabled: bool, configuration: &str) -> Vec<Violation> {
    if !enabled && configuration == "{}" {
        return Vec::new();
    }
    let read = match kind {
        "JWT" => token::Provider::parse(configuration).map(drop),
        "HTTP" => http::Provider::parse(configuration).map(drop),
        _ => Ok(()),
    };
    match read {
        Ok(()) => Vec::new(),
        Err(Invalid::Field { field, reason }) => vec![Violation::new(field, reason)],
        Err(error @ Invalid::Unreadable(_)) => vec![Violation::new("", error.to_string())],
    }
}

/// What is wrong with an order of providers.
pub(crate) fn check_priorities(priorities: &[String]) -> Option<String> {
    let named: BTreeSet<&str> = priorities.iter().map(String::as_str).collect();
    let is_whole = named == BTreeSet::from(PRIORITIES) && priorities.len() == PRIORITIES.len();
    (!is_whole).then(|| format!("names each of {} once", PRIORITIES.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_masked_wherever_they_stand_and_come_back() {
        let jwt = r#"{"type":"JWT","jwtVerifierConfiguration":{"headers":{"Authorization":"Bearer x"},"jwtSignAlgorithmConfiguration":{"algorithm":"HMAC_BASED","secret":"0123"}},"list":[{"password":"p"}],"authClaims":{"a":"b"}}"#;
        let masked = mask(jwt);
        for secret in ["Bearer x", "0123", "\"p\""] {
            assert!(!masked.contains(secret), "{masked}");
        }
        assert!(masked.contains(r#""authClaims":{"a":"b"}"#), "{masked}");
        assert_eq!(unmask(&masked, Some(jwt)).unwrap(), jwt);
        let violations = unmask(&masked, None).unwrap_err();
        assert_eq!(violations.len(), 3);
        assert_eq!(violations[0].path, "jwtVerifierConfiguration.headers.Authorization");
        let http = r#"{"restEndpointUrl":"http://a/x","credentials":{"password":"p"}}"#;
        let moved = mask(http).replace("http://a", "http://b");
        assert_eq!(unmask(&moved, Some(http)).unwrap_err()[0].path, "credentials.password");
    }

    #[test]
    fn configurations_are_objects_of_their_own_type() {
        assert_eq!(check("JWT", "{}"), []);
        assert_eq!(check("MQTT_BASIC", r#"{"type":"MQTT_BASIC","authStrategy":"USERNAME"}"#), []);
        for (kind, configuration, path) in [
            ("JWT", "[]", ""),
            ("JWT", "x", ""),
            ("JWT", r#"{"type":"HTTP"}"#, "type"),
            ("MQTT_BASIC", r#"{"authStrategy":"BOTH"}"#, "authStrategy"),
            ("X_509", r#"{"clientAuthType":1}"#, "clientAuthType"),
            ("HTTP", r#"{"defaultClientType":"X"}"#, "defaultClientType"),
        ] {
            let violations = check(kind, configuration);
            assert_eq!(violations.len(), 1, "{configuration}");
            assert_eq!(violations[0].path, path, "{configuration}");
        }
    }

    #[test]
    fn what_is_turned_on_can_be_used_by_data_planes() {
        assert_eq!(check_whole("JWT", false, "{}"), []);
        assert_eq!(check_whole("MQTT_BASIC", true, "{}"), []);
        assert_eq!(check_whole("HTTP", true, r#"{"restEndpointUrl":"http://a:1/x"}"#), []);
        for (kind, configuration) in [("JWT", "{}"), ("HTTP", r#"{"restEndpointUrl":"ftp://a"}"#)] {
            assert_eq!(check_whole(kind, true, configuration).len(), 1, "{configuration}");
        }
    }

    #[test]
    fn an_order_names_each_provider_once() {
        let order = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert_eq!(check_priorities(&order(&["HTTP", "JWT", "X_509", "MQTT_BASIC"])), None);
        for bad in [
            &["HTTP"][..],
            &["HTTP", "HTTP", "X_509", "MQTT_BASIC"],
            &["HTTP", "JWT", "X_509", "MQTT_BASIC", "SCRAM"],
            &["HTTP", "JWT", "X_509", "MQTT_BASIC", "HTTP"],
        ] {
            assert!(check_priorities(&order(bad)).is_some(), "{bad:?}");
        }
    }
}
