//! Libraries that do what Catena does, asked for the same work in process.
//!
//! `catena-peers NAME WORD...` does the work that the words describe (see `catena_workload`) with the library of that name, and prints
//! its figures.

mod imago;
mod qcow2_rs;

use anyhow::{Result, bail};
use catena_workload::Work;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let name = words.next().unwrap_or_default();
    match Work::parse(words).and_then(|work| run(&name, &work)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("catena-peers: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(name: &str, work: &Work) -> Result<()> {
    let figures = match name {
        "imago" => imago::work(work)?,
        "qcow2-rs" => qcow2_rs::work(work)?,
        _ => bail!("there is no peer `{name}`: imago, qcow2-rs"),
    };
    figures.print();
    Ok(())
}
