//! Page sizes and opaque page tokens. A token holds a place and a digest of the question that it is an answer to.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Serialize, de::DeserializeOwned};
use sha2::{Digest as _, Sha256};
use tonic::Status;

use super::error;
use crate::store::PAGE_ROWS_MAX;

const SIZE_DEFAULT: u64 = 50;

/// Rows of a page.
pub(super) fn size(asked: i32) -> Result<u64, Status> {
    match u64::try_from(asked) {
        Ok(0) => Ok(SIZE_DEFAULT),
        Ok(size) => Ok(Ord::min(size, PAGE_ROWS_MAX)),
        Err(_) => Err(error::invalid_field("page_size", "must not be negative")),
    }
}

/// A token that says where the next page begins, and of which question.
pub(super) fn token(place: &impl Serialize, question: &str) -> String {
    let text = serde_json::to_vec(&(place, digest(question))).expect("places are plain data");
    URL_SAFE_NO_PAD.encode(text)
}

/// Where a page begins; `None` for the first.
pub(super) fn place<T: DeserializeOwned>(token: &str, question: &str) -> Result<Option<T>, Status> {
    if token.is_empty() {
        return Ok(None);
    }
    let read = || {
        let bytes = URL_SAFE_NO_PAD.decode(token).ok()?;
        let (place, asked) = serde_json::from_slice::<(T, String)>(&bytes).ok()?;
        (asked == digest(question)).then_some(place)
    };
    match read() {
        Some(place) => Ok(Some(place)),
        None => Err(foreign()),
    }
}

/// A token of another question, or of nobody.
pub(super) fn foreign() -> Status {
    let text = "is not a token of this listing; send the other fields as with the first page, or no token";
    error::invalid_field("page_token", text)
}

/// The question may be long, and a token need not tell it.
fn digest(question: &str) -> String {
    URL_SAFE_NO_PAD.encode(&Sha256::digest(question)[..16])
}
