//! One guest that libvirt started, or refused, beside what we make of it.

use catena::chain::End;
use catena::doctor::User;
use catena::{Chain, Policy};
use catena_testkit::domains::{KEYS, PASSPHRASE};
use catena_testkit::libvirt::{Arguments, Daemon, Guest, NOBODY, Started};
use catena_virt::access::{self, Grant, Host, Ids};
use catena_virt::blockdev::{self, Options, Tree};
use catena_virt::{Document, Generation, live, numbered};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Where we differ, and why we do. Each is a part of what one of the two says.
const JUSTIFIED: [(&str, &str); 5] = [
    // libvirt takes for raw what is of a format nobody knows.
    ("recorded as the format of backing image", "<domain"),
    // libvirt stumbles over an image that is encrypted and no XML names a secret for. We say so.
    (
        "and no <encryption> in XML names its secret",
        "Unexpected enum value 0 for virStorageEncryptionEngine",
    ),
    // libvirt would have QEMU make a file system of a folder.
    (
        "it is a directory",
        "storage type 'dir' requires use of storage format 'fat'",
    ),
    // QEMU understands these references, and so do we.
    (
        ACCEPTED,
        "missing parser implementation for JSON backing volume driver",
    ),
    (ACCEPTED, "invalid backing protocol 'file'"),
];
/// What we say of a guest that we would start.
const ACCEPTED: &str = "accepted";

/// How a guest was compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Compared {
    /// It runs: live XML, nodes, objects, devices, owners of files.
    Running,
    /// Both refuse it, in the same words.
    Refused,
    /// QEMU does not take what libvirt and we give it, which is the same.
    GivenAndRefused,
    /// QEMU does not open an image that we could not read either.
    NotOpened,
    /// The two differ, with reason.
    Justified,
}

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

/// Whether the two differ with reason.
fn justified(ours: &str, theirs: &Result<String, String>) -> bool {
    let (Ok(theirs) | Err(theirs)) = theirs;
    JUSTIFIED
        .iter()
        .any(|(our, their)| ours.contains(our) && theirs.contains(their))
}

/// What is compared of objects: where a secret's content comes from is not.
fn objects(given: impl Iterator<Item = Value>, used: &[String]) -> Vec<String> {
    let mut objects: Vec<_> = given
        .filter_map(|mut object| {
            let kind = object["qom-type"].as_str()?.to_owned();
            let id = object["id"].as_str()?.to_owned();
            let fields = object.as_object_mut()?;
            match kind.as_str() {
                "secret" if id == "masterKey0" => return None,
                "secret" => fields.retain(|key, _| key == "qom-type" || key == "id"),
                // A helper that libvirt runs listens in a folder of its own.
                "pr-manager-helper" if id == "pr-helper0" => fields.retain(|key, _| key != "path"),
                "memory-backend-ram" => return None,
                // libvirt has all of the domain's, also those that no disk is in.
                "throttle-group" if !used.iter().any(|node| node.contains(&format!("\"{id}\""))) => {
                    return None;
                }
                _ => {}
            }
            Some(object.to_string())
        })
        .collect();
    objects.sort();
    objects
}

fn parsed(values: &[String]) -> impl Iterator<Item = Value> {
    values.iter().map(|value| serde_json::from_str(value).unwrap())
}

/// The owners of files.
pub type Owners = BTreeMap<PathBuf, Ids>;

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

/// Ours beside libvirt's, or how they differ. `before` has the owners of all files before the guest started, `during` those
/// while it ran.
pub fn compare(
    daemon: &Daemon,
    guest: &Guest,
    started: &Started,
    before: &Owners,
    during: Option<&Owners>,
) -> Result<Compared, String> {
    let text = format!(
        "<domain><devices>{}</devices>{}</domain>",
        guest.devices, guest.domain
    );
    let said = started.xml.as_ref().err();
    let mut document = match (Document::parse(text), said) {
        (Ok(document), _) => document,
        (Err(error), Some(said)) if said.ends_with(&error.to_string()) => return Ok(Compared::Refused),
        (Err(error), said) => return Err(format!("ours refuses: {error}\nlibvirt: {said:?}")),
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
    let chains: Vec<_> = document
        .disks
        .iter()
        .map(|disk| disk.chain(&Policy::libvirt()))
        .collect();
    let by_qemu = said.is_some_and(|said| said.contains("qemu-system-x86_64: "));
    let mut broken = Vec::new();
    for chain in &chains {
        match chain {
            Ok(Chain {
                end: End::Broken(end),
                ..
            }) => {
                // Its sentence names who we are as libvirt names QEMU's user.
                broken.push(end.error.message().split(" (as uid").next().unwrap_or_default());
            }
            Err(why) if why.contains("libvirt alone") => broken.push("Storage volume not found"),
            _ => {}
        }
    }
    if !broken.is_empty() {
        return match said {
            Some(said) if broken.iter().any(|reason| said.contains(reason)) => Ok(Compared::Refused),
            // Where libvirt looks at nothing, it finds what is missing when it gives it an owner.
            Some(said) if by_qemu || said.contains("unable to stat: ") => Ok(Compared::NotOpened),
            // libvirt starts the guest without the disk.
            None if guest.devices.contains("startupPolicy='optional'")
                && broken
                    .iter()
                    .any(|reason| reason.starts_with("Cannot access storage file")) =>
            {
                Ok(Compared::Justified)
            }
            _ if broken.iter().any(|reason| justified(reason, &started.xml)) => Ok(Compared::Justified),
            _ => Err(format!("ours is broken: {broken:?}\nlibvirt: {:?}", started.xml)),
        };
    }
    let chains: Vec<_> = chains.into_iter().map(Result::ok).collect();
    let options = Options {
        secrets: secrets(),
        ..Options::default()
    };
    let running = numbered::number(&document, &chains, Generation::V11);
    let order = document.order();
    let trees: Result<Vec<_>, _> = order
        .iter()
        .filter_map(|place| running[*place].as_ref())
        .map(|running| blockdev::tree(running, &options))
        .collect();
    let trees = match (trees, said) {
        (Ok(trees), _) => trees,
        (Err(error), Some(said)) if said.contains(&error.to_string()) => return Ok(Compared::Refused),
        (Err(error), _) if justified(&error.to_string(), &started.xml) => return Ok(Compared::Justified),
        (Err(error), said) => return Err(format!("ours has no nodes: {error}\nlibvirt: {said:?}")),
    };
    if let Some(said) = said.filter(|_| !by_qemu) {
        if justified(ACCEPTED, &started.xml) {
            return Ok(Compared::Justified);
        }
        return Err(format!("libvirt refuses: {said}"));
    }
    given(&trees, &started.arguments)?;
    let grants = grants(&document, &chains)?;
    let denied = said.is_some_and(|said| said.contains("Permission denied"));
    let remote = guest.devices.contains("device='lun'") || trees.iter().any(is_remote);
    let ids = access::process(&document.seclabels, &host()).map_err(|error| error.to_string())?;
    let user = User::of_process(ids.uid, ids.gid);
    let obstacles: Vec<_> = (grants.iter())
        .filter(|grant| !grant.obstacles(&user).started.is_empty())
        .filter_map(Grant::path)
        .collect();
    if (denied && obstacles.is_empty()) || (said.is_none() && !obstacles.is_empty() && !remote) {
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
    if during != Some(&expected) {
        let differ: Vec<_> = expected
            .iter()
            .filter(|(path, ids)| during.is_none_or(|found| found.get(*path) != Some(ids)))
            .collect();
        return Err(format!("owners: {differ:#?}"));
    }
    let ours = live::live(&document, &chains, Generation::V11).map_err(|error| error.to_string())?;
    let (ours, theirs) = (chains_of(&ours), chains_of(started.xml.as_ref().unwrap()));
    let ours: Vec<_> = order.iter().map(|place| ours[*place].clone()).collect();
    if ours != theirs {
        return Err(format!(
            "our XML is\n{}\nlibvirt's\n{}",
            ours.join("\n"),
            theirs.join("\n")
        ));
    }
    Ok(Compared::Running)
}

/// Whether what we give QEMU is what libvirt gave it.
fn given(trees: &[Tree], arguments: &Arguments) -> Result<(), String> {
    let ours: Vec<_> = trees
        .iter()
        .flat_map(|tree| &tree.nodes)
        .map(Value::to_string)
        .collect();
    let theirs = arguments.values("-blockdev");
    if ours != theirs {
        return Err(format!("our nodes are {ours:#?}\nlibvirt's {theirs:#?}"));
    }
    let mut of_trees: Vec<_> = trees.iter().flat_map(|tree| tree.objects.clone()).collect();
    of_trees.sort_by_key(Value::to_string);
    of_trees.dedup();
    let (ours, theirs) = (
        objects(of_trees.into_iter(), &ours),
        objects(parsed(&arguments.values("-object")), &ours),
    );
    if ours != theirs {
        return Err(format!("our objects are {ours:#?}\nlibvirt's {theirs:#?}"));
    }
    let ours: Vec<_> = trees.iter().map(|tree| tree.drive.clone()).collect();
    let devices = arguments.values("-device");
    let theirs: Vec<_> = parsed(&devices)
        .filter_map(|device| Some(device.get("drive")?.as_str()?.to_owned()))
        .collect();
    if ours != theirs {
        return Err(format!("our drives are {ours:?}\nlibvirt's {theirs:?}"));
    }
    Ok(())
}

/// Something in place of each secret.
fn secrets() -> BTreeMap<String, std::path::PathBuf> {
    let names = [PASSPHRASE, "mine", KEYS[0].1, KEYS[1].1];
    names.map(|name| (name.to_owned(), "/secret".into())).into()
}
