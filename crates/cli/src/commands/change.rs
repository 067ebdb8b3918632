//! What the verbs share that change images: options, how a plan is performed and told, and the backing image's format.

use crate::error::CommandError;
use crate::output;
use crate::text;
use catena::{Error, ErrorKind, Policy, Reading, Reference, Source, Start, detect};
use std::fmt::Display;
use std::io::Write;
use std::process::ExitCode;

/// Options of every verb that changes something.
#[derive(Debug, clap::Args)]
pub struct ChangeArgs {
    /// What may be opened and believed because an image says so: 'libvirt', 'strict' or a policy file
    #[arg(long, default_value = "libvirt")]
    policy: String,
    /// Say what would be done, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Print nothing but errors
    #[arg(short, long)]
    quiet: bool,
}

impl ChangeArgs {
    /// The rules to follow.
    pub fn policy(&self) -> Result<Policy, CommandError> {
        Ok(Policy::load(&self.policy)?)
    }

    /// Performs a plan unless it is only to be told, and tells it unless nobody listens.
    pub fn perform<P: Display>(
        &self,
        plan: &P,
        execute: impl FnOnce(&P) -> catena::Result<()>,
    ) -> Result<ExitCode, CommandError> {
        if !self.dry_run {
            execute(plan)?;
        }
        if !self.quiet {
            let mut out = output::stdout();
            writeln!(out, "{}", text::printable(&plan.to_string()))?;
            out.flush()?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// The error for a backing image whose format the user did not give: its format is told, but not taken.
pub fn without_format(name: &str, overlay: &Source, policy: &Policy) -> Error {
    let error = Error::new(
        ErrorKind::Conflict,
        "backing image specified without backing format",
    );
    let found = Reference::parse(name, Reading::Catena)
        .ok()
        .and_then(|reference| {
            let start = Start {
                source: reference.resolve(overlay),
                format: None,
            };
            detect(&start, policy).active().map(|layer| layer.format)
        });
    match found {
        Some(format) => error.with_hint(format!(
            "it looks like {format}: if no guest could have written its header, add --backing-format {format}"
        )),
        None => error.with_hint("add --backing-format with the format it is in"),
    }
}
