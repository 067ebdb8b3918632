//! The chain that a verb is about: the options that name it and say what may be believed.

use crate::error::CommandError;
use crate::text;
use catena::chain::{Consent, Origin};
use catena::open::Sharing;
use catena::{Chain, Format, Policy, Start, detect};
use std::io::Write;
use std::path::PathBuf;

/// The rules for what images name.
#[derive(Debug, clap::Args)]
pub struct PolicyArgs {
    /// What may be opened and believed because an image says so: 'libvirt', 'strict' or a policy file
    #[arg(long, default_value = "libvirt")]
    policy: String,
    /// Go on where a backing image is not the one that its overlay was made on: you answer for what the guest sees
    #[arg(long)]
    accept_base: bool,
}

impl PolicyArgs {
    /// The rules to follow.
    pub fn load(&self) -> Result<Policy, CommandError> {
        let policy = Policy::load(&self.policy)?;
        Ok(if self.accept_base {
            policy.accepting_changed_bases()
        } else {
            policy
        })
    }
}

/// Names an image that is changed.
#[derive(Debug, clap::Args)]
pub struct ImageArgs {
    /// The image: a file or block device
    pub image: PathBuf,
    /// Its format; probed where it is not given
    #[arg(short, long, value_parser = parse_format)]
    pub format: Option<Format>,
    #[command(flatten)]
    policy: PolicyArgs,
}

impl ImageArgs {
    /// What is known before anything is looked at.
    pub fn start(&self) -> Start {
        Start::at(&self.image, self.format)
    }

    /// The rules to follow.
    pub fn policy(&self) -> Result<Policy, CommandError> {
        self.policy.load()
    }

    /// The rules to follow where what the image names is read. Where the image's format was probed that is said, unless nobody
    /// is to hear it.
    pub fn policy_to_read(&self, quiet: bool) -> Result<Policy, CommandError> {
        let policy = self.policy()?;
        if !quiet {
            warn_probed(&detect(&self.start(), &policy));
        }
        Ok(policy)
    }
}

/// Names a chain by its active image.
#[derive(Debug, clap::Args)]
pub struct TargetArgs {
    /// The active image of the chain: a file or block device
    pub target: PathBuf,
    /// The active image's format; probed where it is not given
    #[arg(short, long, value_parser = parse_format)]
    pub format: Option<Format>,
    #[command(flatten)]
    policy: PolicyArgs,
    /// Read images although another process may be writing them: what is read may be half written
    #[arg(short = 'U', long)]
    pub force_share: bool,
}

impl TargetArgs {
    /// What is known before anything is looked at.
    pub fn start(&self) -> Start {
        Start::at(&self.target, self.format)
    }

    /// The rules to follow.
    pub fn policy(&self) -> Result<Policy, CommandError> {
        self.policy.load()
    }

    /// Follows the chain. That it breaks is a result, not an error.
    pub fn detect(&self) -> Result<Chain, CommandError> {
        Ok(detect(&self.start(), &self.policy()?))
    }

    /// Whether images that somebody writes are read.
    pub fn sharing(&self) -> Sharing {
        if self.force_share {
            Sharing::Force
        } else {
            Sharing::Locked
        }
    }
}

/// Says on standard error that the active image's format was probed, where what came out can name other files: a guest
/// can write a header at the start of a raw disk.
pub fn warn_probed(chain: &Chain) {
    if let Some(note) = probed_note(chain) {
        let _ = writeln!(anstream::stderr(), "catena: {note}");
    }
}

/// The sentence that [`warn_probed`] says; `None` where there is no need.
pub fn probed_note(chain: &Chain) -> Option<String> {
    let active = chain.active()?;
    let probed = active.origin == Origin::Probed(Consent::UserArgument) && active.format != Format::Raw;
    probed.then(|| {
        format!(
            "{} was probed as {format}, which a guest can fake: give '-f {format}' to be sure",
            text::printable(&active.name()),
            format = active.format,
        )
    })
}

/// A format by QEMU's name for it, or libvirt's.
pub fn parse_format(name: &str) -> Result<Format, String> {
    Format::from_qemu(name)
        .or_else(|| Format::from_libvirt(name))
        .ok_or_else(|| {
            let names: Vec<_> = Format::ALL.iter().map(|format| format.as_str()).collect();
            format!("there is no such format; known are {}", names.join(", "))
        })
}
