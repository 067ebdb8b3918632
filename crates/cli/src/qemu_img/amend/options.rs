//! The options that can be changed, and what is asked of them.

use crate::qemu_img::create_options::{Chosen, Use};
use crate::qemu_img::{keyval, size};
use catena_format::limits;

/// The list that `-o help` prints.
pub fn help() -> String {
    Chosen::of("qcow2", Use::Amend).list("Amend options for 'qcow2'")
}

/// What is asked for. `None` is what stays.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Amendment {
    /// Whether it is to be a version 3 image; with the word for it.
    pub compat: Option<String>,
    /// Bytes of the disk.
    pub size: Option<u64>,
    /// The name of the backing image, as it is recorded already.
    pub backing_file: Option<String>,
    /// Its format, as it is recorded already.
    pub backing_fmt: Option<String>,
    /// The name of the data file.
    pub data_file: Option<String>,
    /// Whether the data file is a raw image.
    pub data_file_raw: Option<bool>,
    /// Whether refcounts may be postponed.
    pub lazy_refcounts: Option<bool>,
    /// Bits of a refcount.
    pub refcount_bits: Option<u64>,
    /// Something about encryption.
    pub encryption: bool,
}

impl Amendment {
    /// Reads a list. The error is QEMU's sentence.
    pub fn parse(list: &str) -> Result<Self, String> {
        let mut chosen = Chosen::of("qcow2", Use::Amend);
        chosen.parse(list).map_err(|text| {
            match text.starts_with("Invalid parameter ") && is_for_creation(list) {
                true => format!("{text}\nThis option is only supported for image creation"),
                false => text,
            }
        })?;
        let text = |key: &str| chosen.get(key).map(str::to_owned);
        Ok(Self {
            compat: text("compat"),
            // No size is asked for by 0.
            size: chosen.size("size").filter(|size| *size > 0),
            backing_file: text("backing_file"),
            backing_fmt: text("backing_fmt"),
            data_file: text("data_file"),
            data_file_raw: chosen.switch("data_file_raw"),
            lazy_refcounts: chosen.switch("lazy_refcounts"),
            refcount_bits: chosen.number("refcount_bits"),
            encryption: chosen.given().any(|(key, _)| key.starts_with("encrypt")),
        })
    }
}

/// Whether a list would do where an image is made.
fn is_for_creation(list: &str) -> bool {
    let (mut amend, mut create) = (Chosen::of("qcow2", Use::Amend), Chosen::of("qcow2", Use::Format));
    keyval::parse(list)
        .into_iter()
        .all(|(key, value)| match amend.has(&key) {
            true => amend.set(&key, value).is_ok(),
            false => create.set(&key, value).is_ok(),
        })
}

/// What an image is, as far as it decides what can be changed.
#[derive(Clone, Copy, Debug)]
pub struct State<'a> {
    /// Whether it is a version 3 image.
    pub is_v3: bool,
    /// Bits of a refcount.
    pub refcount_bits: u64,
    /// Whether its data is in a data file.
    pub has_data_file: bool,
    /// Whether that is a raw image.
    pub data_file_raw: bool,
    /// Whether refcounts may be postponed.
    pub lazy_refcounts: bool,
    /// The recorded backing image.
    pub backing_file: Option<&'a str>,
    /// Its recorded format.
    pub backing_fmt: Option<&'a str>,
    /// Bits for features that version 2 has not, but for those that can be taken away.
    pub v3_features: u64,
    /// Whether a snapshot has another size than the disk is to have, or the state of a guest of more than 4 GiB.
    pub snapshots_need_v3: bool,
    /// Internal snapshots.
    pub snapshots: usize,
}

impl Amendment {
    /// Whether the result is a version 3 image.
    pub fn is_v3(&self, state: &State<'_>) -> Result<bool, String> {
        match self.compat.as_deref() {
            None => Ok(state.is_v3),
            Some("0.10" | "v2") => Ok(false),
            Some("1.1" | "v3") => Ok(true),
            Some(other) => Err(format!("Unknown compatibility level {other}")),
        }
    }

    /// Whether it can be done, or QEMU's sentence for why not.
    pub fn check(&self, state: &State<'_>) -> Result<(), String> {
        let fails = |text: &str| Err(text.to_owned());
        if self.encryption {
            return fails("Can't amend encryption options - encryption not present");
        }
        let is_v3 = self.is_v3(state)?;
        if self.data_file.is_some() && !state.has_data_file {
            return fails("data-file can only be set for images that use an external data file");
        }
        if self.data_file_raw == Some(true) && !state.data_file_raw {
            return fails("data-file-raw cannot be set on existing images");
        }
        let bits = self.refcount_bits.unwrap_or(state.refcount_bits);
        if !bits.is_power_of_two() || bits > 64 {
            return fails("Refcount width must be a power of two and may not exceed 64 bits");
        }
        if bits != 16 && bits != state.refcount_bits && !is_v3 {
            return fails(
                "Refcount widths other than 16 bits require compatibility level 1.1 or above (use compat=1.1 or greater)",
            );
        }
        let renamed = |asked: &Option<String>, now: Option<&str>| {
            asked.as_deref().is_some_and(|asked| Some(asked) != now)
        };
        if renamed(&self.backing_file, state.backing_file)
            || renamed(&self.backing_fmt, state.backing_fmt)
            || self.backing_file.is_some() != self.backing_fmt.is_some()
        {
            return fails("Cannot amend the backing file\nYou can use 'qemu-img rebase' instead.");
        }
        if self.lazy_refcounts == Some(true) && !state.lazy_refcounts && !is_v3 {
            return fails(
                "Lazy refcounts only supported with compatibility level 1.1 and above (use compat=1.1 or greater)",
            );
        }
        self.check_size(state)?;
        if !is_v3 && state.is_v3 {
            check_downgrade(state, bits)?;
        }
        Ok(())
    }

    fn check_size(&self, state: &State<'_>) -> Result<(), String> {
        let Some(size) = self.size else { return Ok(()) };
        if size > size::MAX {
            return Err("Image size cannot be negative".to_owned());
        }
        if size > limits::VIRTUAL_SIZE {
            return Err(format!(
                "offset({size}) exceeds maximum({})",
                limits::VIRTUAL_SIZE
            ));
        }
        if !size.is_multiple_of(512) {
            return Err("The new size must be a multiple of 512".to_owned());
        }
        if state.snapshots > 0 && !state.is_v3 && self.compat.is_none() {
            return Err("Can't resize a v2 image which has snapshots".to_owned());
        }
        Ok(())
    }
}

fn check_downgrade(state: &State<'_>, bits: u64) -> Result<(), String> {
    if bits != 16 {
        return Err("compat=0.10 requires refcount_bits=16".to_owned());
    }
    if state.has_data_file {
        return Err("Cannot downgrade an image with a data file".to_owned());
    }
    if state.snapshots_need_v3 {
        return Err("Internal snapshots prevent downgrade of image".to_owned());
    }
    if state.v3_features != 0 {
        return Err(format!(
            "Cannot downgrade an image with incompatible features {:#x} set",
            state.v3_features
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> State<'static> {
        State {
            is_v3: true,
            refcount_bits: 16,
            has_data_file: false,
            data_file_raw: false,
            lazy_refcounts: false,
            backing_file: Some("b"),
            backing_fmt: Some("qcow2"),
            v3_features: 0,
            snapshots_need_v3: false,
            snapshots: 0,
        }
    }

    #[test]
    fn a_backing_image_may_be_named_as_it_is_named_already() {
        let check = |list: &str| Amendment::parse(list).unwrap().check(&state());
        assert_eq!(check("backing_file=b,backing_fmt=qcow2"), Ok(()));
        assert!(check("backing_file=b").is_err());
        assert!(check("backing_file=x,backing_fmt=qcow2").is_err());
    }

    #[test]
    fn an_option_for_creation_is_told_from_one_that_is_unknown() {
        let said = |list: &str| Amendment::parse(list).unwrap_err();
        assert_eq!(
            said("cluster_size=64k"),
            "Invalid parameter 'cluster_size'\nThis option is only supported for image creation"
        );
        assert_eq!(said("cluster_size=64k,x=y"), "Invalid parameter 'cluster_size'");
        assert_eq!(said("x=y"), "Invalid parameter 'x'");
    }
}
