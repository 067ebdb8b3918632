//! Values of options that several subcommands have.

use super::program::{Result, error};

/// Whose cache mode it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cache {
    /// Of what is read.
    Source,
    /// Of what is written.
    Target,
}

/// Checks a cache mode. Which it is makes no difference to the result: data is durable at the end whatever was said.
pub fn cache_mode(mode: &str, whose: Cache) -> Result<()> {
    if is_cache_mode(mode) {
        return Ok(());
    }
    Err(error(match whose {
        Cache::Source => format!("Invalid source cache option: {mode}"),
        Cache::Target => format!("Invalid cache option: {mode}"),
    }))
}

/// Whether a cache mode is one.
pub fn is_cache_mode(mode: &str) -> bool {
    matches!(
        mode,
        "none" | "off" | "writeback" | "unsafe" | "writethrough" | "directsync"
    )
}
