//! Small files of settings.

use std::path::Path;

/// Bytes that a file with keys or certificates may have.
const BYTES_MAX: u64 = 1 << 20;

/// The text of a file. Blocks while it is read.
///
/// # Errors
/// A text that names the setting and the file.
pub fn text(path: &Path, setting: &str) -> Result<String, String> {
    let unreadable = |why: String| format!("{setting}: can't read {}: {why}", path.display());
    let metadata = std::fs::metadata(path).map_err(|error| unreadable(error.to_string()))?;
    if metadata.len() > BYTES_MAX {
        return Err(unreadable(format!("it has more than {BYTES_MAX} bytes")));
    }
    std::fs::read_to_string(path).map_err(|error| unreadable(error.to_string()))
}
