//! What is opened for a disk beside its chain: the target of a copy that runs, the overlay of a transient disk, the files of a
//! VMDK, and what leads to a server.
//!
//! libvirt knows of the first two, and grants them like an active image. Of the others it knows nothing: whoever owns them
//! must let QEMU open them.

use super::{AccessError, Grant, Host, ImageLock, Kept, Lease, Lock, One, Role};
use crate::model::{Disk, DomainLabel, Seclabel};
use crate::numbered;
use catena::chain::{Chain, Layer};
use catena::doctor::Access;
use catena::reference::{Location, Network, Source};
use catena::{Format, Policy};
use catena_format::vmdk;
use catena_storage::{LocalFile, Storage};
use std::path::{Path, PathBuf};

/// How much of a VMDK's descriptor is read.
const MAX_DESCRIPTOR: usize = 1 << 20;

/// What is opened for a disk of a domain of that name beside what [`super::grants`] gives. What an image names and the policy does
/// not let be reached is listed, and not looked at.
///
/// # Errors
/// Where a label is none.
pub fn beside(
    disk: &Disk,
    chain: &Chain,
    name: Option<&str>,
    policy: &Policy,
    domain: &[DomainLabel],
    host: &Host,
) -> Result<Vec<Grant>, AccessError> {
    let mut grants = Vec::new();
    if let Some(target) = disk.mirror.as_ref().and_then(|mirror| mirror.layer.as_ref())
        && let Some(source) = target.source()
    {
        let labels = &target.details.seclabels;
        grants.extend(written(disk, chain, (Role::Copy, source, labels), domain, host)?);
    }
    if let (Some(_), Some(active)) = (disk.transient, disk.active())
        && let Some(overlay) = active.source().and_then(|source| transient(source, name?))
    {
        // What the image's own labels say is not said of it.
        grants.extend(written(
            disk,
            chain,
            (Role::Transient, &overlay, &[]),
            domain,
            host,
        )?);
    }
    for (number, layer) in chain.layers.iter().enumerate() {
        let access = if number == 0 && !disk.readonly {
            Access::READ | Access::WRITE
        } else {
            Access::READ
        };
        for path in extents(layer) {
            grants.push(Grant {
                looked_at: policy.reaches(&path),
                ..unseen(number, Role::Extent, &path, access)
            });
        }
    }
    Ok(grants)
}

/// The overlay that libvirt makes for a transient disk while its guest runs.
fn transient(active: &Source, name: &str) -> Option<Source> {
    let mut path = match &active.location {
        Location::File(path) => path.as_os_str().to_owned(),
        _ => return None,
    };
    path.push(format!(".TRANSIENT-{name}"));
    Some(Source::file(path))
}

/// What libvirt grants as it would the active image of a disk that is written.
fn written(
    disk: &Disk,
    chain: &Chain,
    (role, source, own): (Role, &Source, &[Seclabel]),
    domain: &[DomainLabel],
    host: &Host,
) -> Result<Option<Grant>, AccessError> {
    let Some(running) = numbered::alone(disk, chain) else {
        return Ok(None);
    };
    let grant = One {
        running: &running,
        number: 0,
        role,
        source,
        own,
        over: own,
        top: own,
        active: true,
        readonly: false,
        shared: false,
        file: None,
    }
    .grant(domain, host)?;
    Ok(Some(Grant {
        // What is not there yet, libvirt makes.
        looked_at: source.path().is_some_and(Path::exists),
        ..grant
    }))
}

/// The files that hold the data of a VMDK whose own file is a descriptor, as QEMU opens them.
fn extents(layer: &Layer) -> Vec<PathBuf> {
    let (Some(file), Some(path), Format::Vmdk) = (&layer.file, layer.path(), layer.format) else {
        return Vec::new();
    };
    let Some(start) =
        read_start(&file.storage).filter(|start| !start.starts_with(b"KDMV") && !start.starts_with(b"COWD"))
    else {
        return Vec::new();
    };
    let folder = path.parent().unwrap_or(Path::new("/"));
    let mut paths = Vec::new();
    for extent in vmdk::Descriptor::parse(&start).extents {
        let known = ["FLAT", "VMFS", "SPARSE", "VMFSSPARSE", "SESPARSE"].contains(&extent.kind.as_str());
        if let (Some(file), true, "RW") = (extent.file, known, extent.access.as_str()) {
            let path = folder.join(file);
            if !paths.contains(&path) {
                paths.push(path);
            }
        }
    }
    paths
}

fn read_start(file: &LocalFile) -> Option<Vec<u8>> {
    let len = usize::try_from(file.len().ok()?).unwrap_or(usize::MAX);
    let mut start = vec![0; len.min(MAX_DESCRIPTOR)];
    let read = file.read_at(&mut start, 0).ok()?;
    start.truncate(read);
    Some(start)
}

/// What is opened to reach a server.
pub(super) fn of_server(layer: usize, network: &Network) -> Vec<Grant> {
    let sockets = network
        .hosts
        .iter()
        .filter_map(|host| host.socket.as_ref())
        // To connect is to write.
        .map(|socket| {
            unseen(
                layer,
                Role::Socket,
                Path::new(socket),
                Access::READ | Access::WRITE,
            )
        });
    let settings = [
        &network.config_file,
        &network.ssh.known_hosts,
        &network.ssh.keyfile,
    ]
    .into_iter()
    .flatten()
    .map(|file| unseen(layer, Role::Settings, Path::new(file), Access::READ));
    sockets.chain(settings).collect()
}

/// A file that libvirt does not look at.
fn unseen(layer: usize, role: Role, path: &Path, access: Access) -> Grant {
    let image = match role {
        Role::Extent if access.contains(Access::WRITE) => ImageLock::Writes,
        Role::Extent => ImageLock::Reads,
        _ => ImageLock::None,
    };
    Grant {
        layer,
        role,
        source: Source::file(path),
        access,
        owner: Err(Kept::Unseen),
        selinux: Err(Kept::Unseen),
        apparmor: Err(Kept::Unseen),
        devices: Vec::new(),
        lock: Lock {
            lease: Lease::None,
            image,
        },
        file: None,
        looked_at: true,
    }
}
