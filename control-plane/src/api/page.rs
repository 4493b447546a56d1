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

/// Bytes of a page, about: well below what gRPC clients take as one message (4 MiB).
const BYTES_MAX: usize = 3 << 20;

/// Leaves as many rows as a page takes, at least one of them; says whether some went.
pub(super) fn cut<T>(rows: &mut Vec<T>, size: u64, bytes_of: impl Fn(&T) -> usize) -> bool {
    let mut bytes = 0;
    let fits = |row: &&T| {
        bytes += bytes_of(row);
        bytes <= BYTES_MAX
    };
    let fitting = rows.iter().take(size as usize).take_while(fits).count().max(1);
    let is_cut = rows.len() > fitting;
    rows.truncate(fitting);
    is_cut
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
