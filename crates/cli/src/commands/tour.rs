//! `catena tour`: a chain made, shown, broken as users break chains, diagnosed and mended, in a temporary folder.
//!
//! What the tour shows is what happens: the commands of Catena are run as they stand, and each cure is the command
//! that the doctor gives. After each the guest's view is compared, by its digest, with what it was at first; a tour that
//! does not end with the same is an error.

mod access;
mod guest;
mod stage;

use crate::error::CommandError;
use catena::detect::quoted;
use catena::doctor::{self, Code, Finding, User};
use catena::open::Sharing;
use catena::ops::Silent;
use catena::ops::hash::{self, Digests};
use catena::{Format, Policy, Result, Start, detect};
use stage::{Stage, astray, set_mode, system};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Bytes of a cluster of a new image, and of the guest's sectors.
const CLUSTER: u64 = 64 << 10;
const SECTOR: usize = 512;
const STEPS: usize = 7;

const BASE: &str = "base.raw";
const MONDAY: &str = "monday.qcow2";
const TUESDAY: &str = "tuesday.qcow2";
const MOVED: &str = "archive/base.raw";

/// What the command line says.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The tour needs nothing but a temporary folder, and leaves nothing behind, also
when it is stopped with Ctrl-C.")]
pub struct Args {
    /// Wait for Enter between the steps, where there is a terminal
    #[arg(long)]
    pause: bool,
}

/// Gives the tour.
pub fn run(args: &Args) -> Result<ExitCode, CommandError> {
    let mut stage = Stage::open(STEPS, args.pause)?;
    a_chain_is_made(&mut stage)?;
    let seen = what_it_is(&mut stage)?;
    where_the_bytes_are(&mut stage)?;
    format_not_recorded(&mut stage, &seen)?;
    base_moved(&mut stage, &seen)?;
    not_permitted(&mut stage, &seen)?;
    a_loop(&mut stage, &seen)?;
    stage.close(
        "Four faults, four cures, and the guest's disk is what it was, to the byte. The\n\
         folder of the tour is gone. For an image of your own:\n\n  \
         catena show IMAGE       what its chain is\n  \
         catena doctor IMAGE     what is wrong with it, and what to do",
    )?;
    Ok(ExitCode::SUCCESS)
}

fn a_chain_is_made(stage: &mut Stage) -> Result<(), CommandError> {
    stage.step("A chain is made")?;
    stage.say(
        "This happens in a temporary folder. Lines with a $ are commands: those of catena\n\
         are run as they stand, what others would do the tour does itself.\n\n\
         A guest is installed on base.raw.",
    )?;
    stage.catena_succeeds(&["create", BASE, "--format", "raw", "--size", "64M"])?;
    let base = Path::new(BASE);
    guest::write_raw(base, &sectors("installed", 0, 3 << 20), 0)?;
    guest::write_raw(base, &sectors("installed", 16 << 20, 20 << 20), 16 << 20)?;

    stage.say("What it writes on Monday shall lie in a file of its own, over that.")?;
    stage.catena_succeeds(&["create", MONDAY, "--backing", BASE, "--backing-format", "raw"])?;
    let monday = Path::new(MONDAY);
    write_clusters(monday, "monday", 2 << 20, 16)?;
    write_clusters(monday, "monday", 32 << 20, 8)?;

    stage.say("And so what it writes on Tuesday.")?;
    stage.catena_succeeds(&[
        "create",
        TUESDAY,
        "--backing",
        MONDAY,
        "--backing-format",
        "qcow2",
    ])?;
    let tuesday = Path::new(TUESDAY);
    write_clusters(tuesday, "tuesday", (2 << 20) + (512 << 10), 4)?;
    write_clusters(tuesday, "tuesday", 48 << 20, 4)?;
    Ok(())
}

/// Gives a digest of what the guest sees.
fn what_it_is(stage: &mut Stage) -> Result<Digests, CommandError> {
    stage.step("What it is")?;
    stage.say("The guest runs on tuesday.qcow2, and sees one disk:")?;
    stage.catena_succeeds(&["show", TUESDAY, "-f", "qcow2"])?;
    stage.say("And a digest of what the guest sees, to compare with later:")?;
    view(stage)
}

fn where_the_bytes_are(stage: &mut Stage) -> Result<(), CommandError> {
    stage.step("Where the guest's bytes are")?;
    stage.say(
        "The layers' maps, merged: each stretch of the guest's disk comes from the\n\
         topmost layer that has it. Layer 0 is the active one.",
    )?;
    stage.catena_succeeds(&["map", TUESDAY, "-f", "qcow2"])
}

fn format_not_recorded(stage: &mut Stage, seen: &Digests) -> Result<(), CommandError> {
    stage.step("A format that nobody recorded")?;
    stage.say(
        "Up to QEMU 6.0 a script could name a backing image without its format (-F), and\n\
         many have. A guest can make a raw disk look like anything, so libvirt and Catena\n\
         refuse to guess:",
    )?;
    stage.shell(&format!("qemu-img rebase -u -b {MONDAY} {TUESDAY}"), || {
        guest::record(Path::new(TUESDAY), MONDAY, None)
    })?;
    let findings = ask(stage, &[], None, Code::FormatNotRecorded)?;
    stage.cure()?;
    stage.say("No guest ever had monday.qcow2 as a raw disk. So its format may be recorded:")?;
    cure(stage, &findings)?;
    compare(stage, seen)
}

fn base_moved(stage: &mut Stage, seen: &Digests) -> Result<(), CommandError> {
    stage.step("A base that moved")?;
    stage.shell(&format!("mkdir archive && mv {BASE} archive/"), || {
        std::fs::create_dir("archive").map_err(|error| system(error, "cannot make the archive"))?;
        std::fs::rename(BASE, MOVED).map_err(|error| system(error, "cannot move the base"))
    })?;
    let findings = ask(stage, &["--search", "."], None, Code::BackingMissing)?;
    stage.cure()?;
    stage.say(
        "Without the base there is no view to compare the new one with: hence --unsafe. The\n\
         digest of step 2 serves instead.",
    )?;
    cure(stage, &findings)?;
    compare(stage, seen)
}

fn not_permitted(stage: &mut Stage, seen: &Digests) -> Result<(), CommandError> {
    stage.step("A file that QEMU may not open")?;
    stage.say(
        "QEMU runs as a user of its own, who must be able to write the active layer and\n\
         to read the others. The doctor looks with that user's eyes, here nobody's:",
    )?;
    stage.shell(&format!("chmod 600 {MOVED}"), || {
        set_mode(Path::new(MOVED), 0o600)
    })?;
    let user = stranger();
    let findings = ask(stage, &["--as-user", &user], Some(&user), Code::PermissionDenied)?;
    stage.cure()?;
    stage.say("The doctor's commands let that user in, and nobody else:")?;
    cure(stage, &findings)?;
    stage.catena_succeeds(&["doctor", TUESDAY, "-f", "qcow2", "--as-user", &user])?;
    compare(stage, seen)
}

fn a_loop(stage: &mut Stage, seen: &Digests) -> Result<(), CommandError> {
    stage.step("A chain that comes back to itself")?;
    stage.say("A slip, and Monday stands on Tuesday, which stands on Monday:")?;
    stage.shell(
        &format!("qemu-img rebase -u -F qcow2 -b {TUESDAY} {MONDAY}"),
        || guest::record(Path::new(MONDAY), TUESDAY, Some("qcow2")),
    )?;
    guest::goes_on(Path::new(TUESDAY))?;
    ask(stage, &[], None, Code::Loop)?;
    stage.cure()?;
    stage.say("Which image Monday was made over, only you know:")?;
    stage.catena_succeeds(&[
        "rebase",
        MONDAY,
        "--backing",
        MOVED,
        "--backing-format",
        "raw",
        "--unsafe",
    ])?;
    compare(stage, seen)
}

/// Runs the doctor, and tells what it finds of a kind, of which there must be something.
fn ask(
    stage: &Stage,
    options: &[&str],
    user: Option<&str>,
    code: Code,
) -> Result<Vec<Finding>, CommandError> {
    let words = [&["doctor", TUESDAY, "-f", "qcow2"], options].concat();
    stage.catena(&words)?;
    let policy = Policy::libvirt();
    let chain = detect(&Start::at(TUESDAY, Some(Format::Qcow2)), &policy);
    let search = options.contains(&"--search").then(|| PathBuf::from("."));
    let asked = doctor::Options::new(&policy)
        .user(user.map(User::find).transpose()?)
        .search(search);
    let mut findings = doctor::examine_fully(&chain, &asked);
    findings.retain(|finding| finding.code == code);
    match findings.is_empty() {
        false => Ok(findings),
        true => Err(astray(&format!("the doctor did not find {}", code.as_str())).into()),
    }
}

/// Runs the commands of the cures.
fn cure(stage: &Stage, findings: &[Finding]) -> Result<(), CommandError> {
    for command in findings.iter().flat_map(|finding| &finding.cure.commands) {
        let words: Vec<_> = command.iter().filter_map(|word| word.to_str()).collect();
        match words.as_slice() {
            ["catena", words @ ..] => stage.catena_succeeds(words)?,
            ["setfacl", "-m", entry, path] => {
                stage.shell(&command_line(command), || access::grant(Path::new(path), entry))?;
            }
            _ => return Err(astray(&format!("the doctor says '{}'", command_line(command))).into()),
        }
    }
    Ok(())
}

fn command_line(words: &[OsString]) -> String {
    let words: Vec<_> = words.iter().map(quoted).collect();
    words.join(" ")
}

/// Shows a digest of what the guest sees, and gives it.
fn view(stage: &Stage) -> Result<Digests, CommandError> {
    stage.catena_succeeds(&["hash", TUESDAY, "-f", "qcow2"])?;
    let chain = detect(&Start::at(TUESDAY, Some(Format::Qcow2)), &Policy::libvirt());
    let request = hash::Request {
        blake3: true,
        sha256: false,
    };
    Ok(hash::hash(&chain.open(Sharing::Locked)?, request, &Silent)?)
}

/// Compares what the guest sees with what it saw.
fn compare(stage: &Stage, seen: &Digests) -> Result<(), CommandError> {
    let now = view(stage)?;
    if (now.blake3, now.size) != (seen.blake3, seen.size) {
        return Err(astray("the guest sees something else than before").into());
    }
    // It goes on writing. Otherwise what was mended below its image would look newer, by seconds, or not, as fast as this machine is.
    guest::goes_on(Path::new(TUESDAY))?;
    stage.say("The guest sees what it saw before.")
}

/// What the guest writes: a line of text in each sector.
fn sectors(what: &str, from: u64, to: u64) -> Vec<u8> {
    let sector = |number| {
        let mut bytes = format!("{what}, sector {number:08}\n").into_bytes();
        bytes.resize(SECTOR, b' ');
        bytes
    };
    let size = SECTOR as u64;
    (from / size..to / size).flat_map(sector).collect()
}

/// Writes a run of clusters.
fn write_clusters(path: &Path, what: &str, at: u64, count: u64) -> Result<()> {
    for start in (0..count).map(|number| at + number * CLUSTER) {
        guest::write_qcow2(path, &sectors(what, start, start + CLUSTER), start)?;
    }
    Ok(())
}

/// A user who is not the one who gives the tour.
fn stranger() -> String {
    let own = rustix::process::geteuid().as_raw();
    let nobody = User::find("nobody").is_ok_and(|user| user.uid != own);
    match (nobody, own) {
        (true, _) => "nobody".to_owned(),
        (false, 65_534) => "65533".to_owned(),
        (false, _) => "65534".to_owned(),
    }
}
