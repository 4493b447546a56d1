//! TBMQ's property strings: `key:value;key:value`, as in `TB_KAFKA_IE_MSG_TOPIC_PROPERTIES`.

/// A pair that can't be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Invalid property format: {0}")]
pub struct InvalidProperty(pub String);

/// Reads a property string. The first `:` splits a pair; a literal `;` is written `\;`; an empty string has none.
///
/// # Errors
/// The pair that has an empty key or an empty value.
pub fn parse(text: &str) -> Result<Vec<(String, String)>, InvalidProperty> {
    let mut pairs = vec![String::new()];
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '\\' if characters.peek() == Some(&';') => {
                characters.next();
                current(&mut pairs).push(';');
            }
            ';' => pairs.push(String::new()),
            other => current(&mut pairs).push(other),
        }
    }
    pairs
        .into_iter()
        .filter(|pair| !pair.is_empty())
        .map(|pair| match pair.split_once(':') {
            Some((key, value)) if !key.is_empty() && !value.is_empty() => {
                Ok((key.to_owned(), value.to_owned()))
            }
            _ => Err(InvalidProperty(pair)),
        })
        .collect()
}

fn current(pairs: &mut [String]) -> &mut String {
    pairs.last_mut().expect("starts with one and only grows")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_split_at_the_first_colon_and_semicolons_can_be_escaped() {
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        assert_eq!(parse(""), Ok(vec![]));
        assert_eq!(
            parse("retention.ms:604800000;partitions:6"),
            Ok(vec![pair("retention.ms", "604800000"), pair("partitions", "6")])
        );
        assert_eq!(parse(r"a:b:c\;d;"), Ok(vec![pair("a", "b:c;d")]));
    }

    #[test]
    fn a_pair_without_key_or_value_is_named() {
        for bad in ["a", "a:", ":b"] {
            assert_eq!(parse(&format!("x:y;{bad}")), Err(InvalidProperty(bad.to_owned())));
        }
    }
}
