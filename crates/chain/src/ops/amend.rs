//! Amend: other options for an image that exists. What the guest sees stays.

use super::observer::Observer;
use super::relink::changeable_header;
use crate::chain::{Chain, Layer};
use crate::detect::{Start, detect};
use crate::policy::Policy;
use catena_engine::qcow2::CheckOptions;
use catena_engine::qcow2::metadata::{Amend, amend};
use catena_engine::{Error, ErrorKind, Result};
use catena_format::qcow2::{Autoclear, Compatible, Header, Version};
use std::fmt;

/// What to change.
#[derive(Clone, Debug)]
pub struct Request {
    /// The image.
    pub start: Start,
    /// Its new options. References to other images are left to `relink` and `rebase`, which look at what the guest sees.
    pub options: Options,
}

/// Options; what is `None` stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Format version.
    pub version: Option<Version>,
    /// Refcounts of `1 << order` bits.
    pub refcount_order: Option<u32>,
    /// Whether refcount updates may be postponed.
    pub lazy_refcounts: Option<bool>,
    /// Whether the data file stays a raw image of the disk, which can only be given up.
    pub data_file_raw: Option<bool>,
}

/// Other options, decided.
#[derive(Debug)]
pub struct Plan {
    chain: Chain,
    amend: Amend,
    /// What changes, in words.
    changes: Vec<String>,
}

/// Decides.
pub fn plan(request: &Request, policy: &Policy) -> Result<Plan> {
    let chain = detect(&request.start, policy);
    let image = chain.active().ok_or_else(|| match chain.check_complete() {
        Err(error) => error,
        Ok(()) => Error::new(ErrorKind::NotFound, "there is no image"),
    })?;
    let header = changeable_header(image)?;
    let (amend, changes) = changes(header, &request.options);
    if amend.data_file_raw == Some(true) {
        return Err(Error::new(
            ErrorKind::Unsupported,
            "the data file of an image that exists does not become a raw image of the disk",
        )
        .with_path(image.name())
        .with_hint("'catena convert -o data_file=FILE,data_file_raw=on' makes such an image"));
    }
    Ok(Plan {
        amend,
        changes,
        chain,
    })
}

/// What is to become other than it is.
fn changes(header: &Header, options: &Options) -> (Amend, Vec<String>) {
    let compat = |version: Version| if version == Version::V2 { "0.10" } else { "1.1" };
    let mut told = Vec::new();
    let version = options.version.filter(|version| *version != header.version);
    if let Some(version) = version {
        told.push(format!("compat {}", compat(version)));
    }
    let order = options
        .refcount_order
        .filter(|order| *order != header.refcount_order);
    if let Some(order) = order {
        told.push(format!("refcounts of {} bits", 1_u64 << order.min(6)));
    }
    let is_lazy = header.compatible.contains(Compatible::LAZY_REFCOUNTS);
    let lazy = options.lazy_refcounts.filter(|lazy| *lazy != is_lazy);
    if let Some(lazy) = lazy {
        told.push(format!("lazy refcounts {}", if lazy { "on" } else { "off" }));
    }
    let is_raw = header.autoclear.contains(Autoclear::RAW_EXTERNAL_DATA);
    let raw = options.data_file_raw.filter(|raw| *raw != is_raw);
    if let Some(raw) = raw {
        told.push(format!("data file raw {}", if raw { "on" } else { "off" }));
    }
    let amend = Amend {
        version,
        refcount_order: order,
        lazy_refcounts: lazy,
        data_file_raw: raw,
        ..Amend::default()
    };
    (amend, told)
}

impl Plan {
    /// Whether all is as it is to be.
    pub fn is_done(&self) -> bool {
        self.changes.is_empty()
    }

    /// Changes them. Stopped by the observer, the image is as it was.
    pub fn execute(&self, observer: &dyn Observer) -> Result<()> {
        let Some(image) = self.chain.active().filter(|_| !self.is_done()) else {
            return Ok(());
        };
        let file = image.reopen_for_writing()?;
        let tell = |done, total| observer.step(done, total);
        let options = CheckOptions::default().watched(&tell);
        amend(&file, &self.amend, &options).map_err(|error| error.with_path(image.name()))
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let image = self.chain.active().map(Layer::name).unwrap_or_default();
        if self.is_done() {
            return write!(f, "{image}: has these options already");
        }
        write!(f, "{image}: gets {}", self.changes.join(", "))
    }
}
