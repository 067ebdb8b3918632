//! One guest that libvirt started, refused or translated, beside what we make of it.

use crate::differences::{self, ACCEPTED};
use crate::given;
use catena::chain::End;
use catena::doctor::User;
use catena::{Chain, Policy};
use catena_format::Format;
use catena_testkit::domains::{KEYS, PASSPHRASE};
use catena_testkit::libvirt::{Arguments, Daemon, Guest, NOBODY, Started};
use catena_virt::access::{self, Grant, Host, Ids};
use catena_virt::blockdev::{self, Options, Tree};
use catena_virt::{Document, Generation, live, numbered};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// The most layers that this libvirt starts a guest with.
const LIBVIRT_DEPTH: usize = 25;

/// How QEMU begins what it says.
const OF_QEMU: &str = "qemu-system-x86_64: ";

/// How a guest was compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Compared {
    /// It runs: live XML, nodes, objects, devices, owners of files.
    Running,
    /// It was not to be started: nodes, objects, devices.
    Translated,
    /// Both refuse it, in the same words.
    Refused,
    /// QEMU does not take what libvirt and we give it, which is the same.
    GivenAndRefused,
    /// QEMU does not open an image that we could not read either.
    NotOpened,
    /// The two differ, with reason.
    Differs,
}

/// The rows of the documentation that guests showed.
pub type Rows = BTreeSet<&'static str>;

/// The owners of files.
pub type Owners = BTreeMap<PathBuf, Ids>;

/// The whole text of a `<disk>`'s `<source>` and `<backingStore>`, without what lies between elements.
fn chains_of(xml: &str) -> Vec<String> {
    let disks = xml.split("<disk ").skip(1);
    let chains = disks.map(|disk| {
        let disk = disk.split("</disk>").next().unwrap();
        let Some(from) = disk.find("<source") else {
            return String::new();
        };
        let chain = disk.get(from..).unwrap();
        let to = chain.find("<target").unwrap();
        let lines: Vec<_> = chain.get(..to).unwrap().lines().map(str::trim).collect();
        let chain = lines.concat();
        // The helper that libvirt runs listens in a folder that is named after the guest's number.
        match chain.split_once("<reservations managed='yes'>") {
            Some((before, rest)) => {
                let after = rest.split_once("</reservations>").unwrap().1;
                format!("{before}<reservations managed='yes'/>{after}")
            }
            None => chain,
        }
    });
    chains.collect()
}

fn host() -> Host {
    Host::new("", "", Some(&format!("+{NOBODY}:+{NOBODY}"))).unwrap()
}

/// Whether a node is on another host: then the guest is given other images, and opens none.
fn is_remote(tree: &Tree) -> bool {
    tree.nodes.iter().any(|node| {
        let driver = node["driver"].as_str().unwrap_or_default();
        let server = node["server"]["type"].as_str();
        (driver == "nbd" && server == Some("inet"))
            || [
                "rbd", "iscsi", "http", "https", "ftp", "ftps", "ssh", "gluster", "nfs", "nvme",
            ]
            .contains(&driver)
    })
}

/// What is opened for the disks of a domain, in the order in which libvirt comes to it.
fn grants(document: &Document, chains: &[Option<Chain>]) -> Result<Vec<Grant>, String> {
    let host = host();
    let mut grants = Vec::new();
    for place in document.order() {
        if let Some(chain) = &chains[place] {
            let disk = &document.disks[place];
            let of_disk = access::grants(disk, chain, &document.seclabels, &host);
            grants.extend(of_disk.map_err(|error| error.to_string())?);
        }
    }
    Ok(grants)
}

/// A guest as we read it; or as both refuse it, or how we differ.
fn read(
    daemon: &Daemon,
    guest: &Guest,
    said: Option<&String>,
    rows: &mut Rows,
) -> Result<Result<Document, Compared>, String> {
    let text = format!(
        "<domain><devices>{}</devices>{}</domain>",
        guest.devices, guest.domain
    );
    let mut document = match (Document::parse(text), said) {
        (Ok(document), _) => document,
        (Err(error), Some(said)) if said.ends_with(&error.to_string()) => return Ok(Err(Compared::Refused)),
        (Err(error), said) => {
            let said = said.map_or("", String::as_str);
            return match differences::row(&error.to_string(), said) {
                Some(row) => differs(rows, row).map(Err),
                None => Err(format!("ours refuses: {error}\nlibvirt: {said:?}")),
            };
        }
    };
    document.find_volumes(|pool, volume| {
        let known = daemon
            .virsh(&format!("vol-dumpxml --pool {pool} --vol {volume}"))
            .unwrap();
        Ok::<_, String>(
            known
                .ok()
                .map(|text| Document::parse(text).unwrap().volume.unwrap()),
        )
    })?;
    Ok(Ok(document))
}

/// The nodes of its disks, in libvirt's order.
fn trees(document: &Document, chains: &[Option<Chain>]) -> Result<Vec<Tree>, String> {
    let options = Options {
        secrets: secrets(),
        ..Options::default()
    };
    let running = numbered::number(document, chains, Generation::V11);
    let order = document.order();
    let trees = order
        .iter()
        .filter_map(|place| running[*place].as_ref())
        .map(|running| blockdev::tree(running, &options).map_err(|error| error.to_string()));
    trees.collect()
}

/// What libvirt would give QEMU, beside ours, or how they differ.
pub fn translated(
    daemon: &Daemon,
    guest: &Guest,
    theirs: &Result<Arguments, String>,
    rows: &mut Rows,
) -> Result<Compared, String> {
    let document = match read(daemon, guest, theirs.as_ref().err(), rows)? {
        Ok(document) => document,
        Err(compared) => return Ok(compared),
    };
    let mut chains = Vec::new();
    for disk in &document.disks {
        let chain = disk.chain(&Policy::libvirt()).ok();
        if let Some(End::Broken(end)) = chain.as_ref().map(|chain| &chain.end) {
            return Err(format!(
                "ours is broken: {}\nlibvirt: {theirs:?}",
                end.error.message()
            ));
        }
        if chain.is_none()
            && theirs
                .as_ref()
                .is_err_and(|said| said.contains("Storage volume not found"))
        {
            return Ok(Compared::Refused);
        }
        chains.push(chain);
    }
    match (trees(&document, &chains), theirs) {
        (Ok(trees), Ok(arguments)) => given::compare(&trees, arguments).map(|()| Compared::Translated),
        (Err(error), Err(said)) if said.contains(&error) => Ok(Compared::Refused),
        (ours, theirs) => Err(format!(
            "ours is {:?}\nlibvirt's {:?}",
            ours.err(),
            theirs.as_ref().err()
        )),
    }
}

/// Why chains break, as we say it.
fn broken(chains: &[Result<Chain, String>]) -> Vec<&str> {
    let mut broken = Vec::new();
    for chain in chains {
        match chain {
            Ok(chain) => {
                if let End::Broken(end) = &chain.end {
                    // Its sentence names who we are as libvirt names QEMU's user.
                    broken.push(end.error.message().split(" (as uid").next().unwrap_or_default());
                }
                let data_files = chain.layers.iter().filter_map(|layer| layer.data_file.as_ref());
                broken.extend(data_files.filter_map(|data| Some(data.file.as_ref().err()?.message())));
            }
            Err(why) if why.contains("libvirt alone") => broken.push("Storage volume not found"),
            Err(_) => {}
        }
    }
    broken
}

/// A guest of ours with broken chains, beside libvirt's.
fn of_broken(
    guest: &Guest,
    theirs: &Result<String, String>,
    broken: &[&str],
    rows: &mut Rows,
) -> Result<Compared, String> {
    let (Ok(said) | Err(said)) = theirs;
    if theirs.is_err() && broken.iter().any(|reason| said.contains(reason)) {
        return Ok(Compared::Refused);
    }
    let missing = |reason: &&str| reason.starts_with("Cannot access storage file");
    // libvirt starts the guest without the disk.
    if theirs.is_ok() && guest.devices.contains("startupPolicy='optional'") && broken.iter().any(missing) {
        return differs(rows, differences::OPTIONAL);
    }
    if let Some(row) = broken.iter().find_map(|reason| differences::row(reason, said)) {
        return differs(rows, row);
    }
    // Where libvirt looks at nothing, it finds what is missing when it gives it an owner.
    if theirs.is_err() && (said.contains(OF_QEMU) || said.contains("unable to stat: ")) {
        if guest.devices.contains("<backingStore/>") {
            rows.insert(differences::CLOSED);
        }
        return Ok(Compared::NotOpened);
    }
    Err(format!("ours is broken: {broken:?}\nlibvirt: {theirs:?}"))
}

/// Takes out of the chains what libvirt does not see in them, where that is listed: whether a data file was.
fn as_libvirt_sees(document: &Document, chains: &mut [Result<Chain, String>], rows: &mut Rows) -> bool {
    let mut unseen = false;
    for (disk, chain) in document.disks.iter().zip(chains) {
        let Ok(chain) = chain else { continue };
        for (number, layer) in chain.layers.iter_mut().enumerate() {
            let given = disk.layers.get(number);
            let backing = layer.description.backing.as_ref();
            if backing.is_some_and(|backing| backing.format.is_some())
                && given.is_none_or(|layer| layer.data_store.is_none())
                && layer.data_file.take().is_some()
            {
                rows.insert(differences::DATA_FILE);
                unseen = true;
            }
            let word = layer.link.as_ref().and_then(|link| link.format.as_deref());
            if given.is_none() && matches!(word, Some("parallels" | "vhdx")) {
                rows.insert(differences::WORDS);
                layer.format = Format::Raw;
            }
        }
    }
    unseen
}

/// Ours beside libvirt's, or how they differ. `before` has the owners of all files before the guest started, `during` those
/// while it ran.
pub fn started(
    daemon: &Daemon,
    guest: &Guest,
    started: &Started,
    (before, during): (&Owners, Option<&Owners>),
    rows: &mut Rows,
) -> Result<Compared, String> {
    let said = started.xml.as_ref().err();
    let document = match read(daemon, guest, said, rows)? {
        Ok(document) => document,
        Err(compared) => return Ok(compared),
    };
    let (Ok(theirs) | Err(theirs)) = &started.xml;
    let mut chains: Vec<_> = document
        .disks
        .iter()
        .map(|disk| disk.chain(&Policy::libvirt()))
        .collect();
    let by_qemu = said.is_some_and(|said| said.contains(OF_QEMU));
    let broken = broken(&chains);
    if !broken.is_empty() {
        return of_broken(guest, &started.xml, &broken, rows);
    }
    let unseen = as_libvirt_sees(&document, &mut chains, rows);
    let chains: Vec<_> = chains.into_iter().map(Result::ok).collect();
    let trees = match (trees(&document, &chains), said) {
        (Ok(trees), _) => trees,
        (Err(error), Some(said)) if said.contains(&error) => return Ok(Compared::Refused),
        (Err(error), said) => {
            return match differences::row(&error, theirs) {
                Some(row) => differs(rows, row),
                None => Err(format!("ours has no nodes: {error}\nlibvirt: {said:?}")),
            };
        }
    };
    if let Some(said) = said.filter(|_| !by_qemu) {
        if let Some(row) = differences::row(ACCEPTED, said) {
            return differs(rows, row);
        }
        let deep = chains
            .iter()
            .flatten()
            .any(|chain| chain.layers.len() > LIBVIRT_DEPTH);
        if deep && said.contains("failed to parse JSON: nesting too deep") {
            given::compare(&trees, &started.arguments)?;
            return differs(rows, differences::DEEP);
        }
        return Err(format!("libvirt refuses: {said}"));
    }
    given::compare(&trees, &started.arguments)?;
    let grants = grants(&document, &chains)?;
    let denied = said.is_some_and(|said| said.contains("Permission denied"));
    let remote = guest.devices.contains("device='lun'") || trees.iter().any(is_remote);
    let ids = access::process(&document.seclabels, &host()).map_err(|error| error.to_string())?;
    let user = User::of_process(ids.uid, ids.gid);
    let obstacles: Vec<_> = (grants.iter())
        .filter(|grant| !grant.obstacles(&user).started.is_empty())
        .filter_map(Grant::path)
        .collect();
    // A data file that libvirt does not see it gives to nobody.
    if (denied && obstacles.is_empty() && !unseen) || (said.is_none() && !obstacles.is_empty() && !remote) {
        return Err(format!("QEMU may not open {obstacles:?}\nlibvirt: {said:?}"));
    }
    if by_qemu {
        return Ok(Compared::GivenAndRefused);
    }
    let mut expected = before.clone();
    for grant in &grants {
        if let (Ok(owner), Some(path)) = (&grant.owner, grant.path()) {
            let path = path.canonicalize().map_err(|error| error.to_string())?;
            if expected.insert(path, owner.ids).is_none() {
                return Err(format!("{} is none of the files", grant.source));
            }
        }
    }
    let differ: Vec<_> = expected
        .iter()
        .filter(|(path, ids)| during.is_none_or(|found| found.get(*path) != Some(ids)))
        .collect();
    if !differ.is_empty() {
        return Err(format!("owners: {differ:#?}"));
    }
    let ours = live::live(&document, &chains, Generation::V11).map_err(|error| error.to_string())?;
    let (ours, theirs) = (chains_of(&ours), chains_of(theirs));
    let ours: Vec<_> = document
        .order()
        .iter()
        .map(|place| ours[*place].clone())
        .collect();
    let same = ours.len() == theirs.len()
        && ours.iter().zip(&theirs).all(|(ours, theirs)| {
            let difference = difference(ours, theirs);
            rows.extend(difference);
            ours == theirs || difference.is_some()
        });
    if !same {
        return Err(format!(
            "our XML is\n{}\nlibvirt's\n{}",
            ours.join("\n"),
            theirs.join("\n")
        ));
    }
    Ok(Compared::Running)
}

fn differs(rows: &mut Rows, row: &'static str) -> Result<Compared, String> {
    rows.insert(row);
    Ok(Compared::Differs)
}

/// How the chain of a disk differs that we show as it was before it had its overlay, or not at all.
fn difference(ours: &str, theirs: &str) -> Option<&'static str> {
    if theirs.contains(".TRANSIENT-guest") {
        // Below the overlay, the number stands where those of all layers below stand.
        let (_, below) = theirs.split_once("<format type='")?;
        let (_, below) = below.split_once("/>")?;
        let (source, _) = ours.split_once(" index='")?;
        return below.starts_with(source).then_some(differences::TRANSIENT);
    }
    (ours.contains(" fdgroup='") && theirs.contains(" fdgroup='")).then_some(differences::HANDED_OVER)
}

/// Something in place of each secret.
fn secrets() -> BTreeMap<String, std::path::PathBuf> {
    let names = [PASSPHRASE, "mine", KEYS[0].1, KEYS[1].1];
    names.map(|name| (name.to_owned(), "/secret".into())).into()
}
