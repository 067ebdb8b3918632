//! What libvirt's QEMU driver asks of a disk that could be read, and what it fills in.

use super::disk::missing;
use super::element::{Element, Result};
use crate::model::{Device, Disk, Encryption, Layer, Place};
use crate::order;
use catena::reference::{Location, Protocol, Source, Transport};
use catena_format::Format;

/// Fills in what libvirt fills in, and refuses what it refuses.
pub(super) fn disk(disk: &mut Disk, element: Element<'_, '_>) -> Result<()> {
    let removable = matches!(disk.device, Device::Cdrom | Device::Floppy);
    let stores = disk.layers.iter().filter_map(|layer| layer.data_store.as_deref());
    let encryptions = disk
        .layers
        .iter()
        .chain(stores)
        .filter_map(|layer| layer.details.encryption.as_ref());
    if encryptions.into_iter().any(|encryption| encryption.cipher) {
        return Err(element.unsupported("supplying <cipher> for domain disk definition is unnecessary"));
    }
    let bus = order::bus(disk).map(str::to_owned);
    let Some(active) = disk.layers.first_mut() else {
        return Ok(());
    };
    if matches!(active.place, Place::Empty) && !removable {
        return Err(missing(
            element,
            "source",
            disk.target.as_deref().unwrap_or("<null>"),
        ));
    }
    let Some(target) = &disk.target else {
        let name = active
            .source()
            .map_or_else(|| "<null>".to_owned(), Source::to_string);
        return Err(missing(element, "target", &name));
    };
    let is_volume = matches!(active.place, Place::Volume { .. });
    if active.format.is_none() && !is_volume {
        active.format = Some(Format::Raw);
    }
    if active.details.startup_policy.as_deref() == Some("requisite") && !removable {
        return Err(element.malformed("disk startupPolicy 'requisite' is allowed only for cdrom or floppy"));
    }
    if let Some(name) = disk.driver.name.as_deref().filter(|name| *name != "qemu") {
        return Err(element.unsupported(format!("unsupported driver name '{name}' for disk '{target}'")));
    }
    if disk.device == Device::Lun {
        let allowed = match &active.place {
            Place::Image(source) => match &source.location {
                Location::Block(_) => true,
                Location::Network(network) => network.protocol == Protocol::Iscsi,
                _ => false,
            },
            Place::Volume { .. } => true,
            _ => false,
        };
        if !allowed {
            return Err(element.unsupported("disk device='lun' is only valid for block type disk source"));
        }
        if let Some(bus) = bus.as_deref().filter(|bus| !matches!(*bus, "scsi" | "virtio")) {
            return Err(element.unsupported(format!("disk device='lun' is not supported for bus='{bus}'")));
        }
        if active.format.is_some_and(|format| format != Format::Raw) {
            return Err(element.unsupported("disk device 'lun' must use 'raw' format"));
        }
    } else if active.details.reservations.is_some() {
        return Err(element.unsupported("<reservations/> allowed only for lun devices"));
    }
    if matches!(active.place, Place::VhostUser { .. }) {
        vhost_user(bus.as_deref(), element)?;
    }
    if disk.driver.discard_no_unref == Some(true) {
        if active.format != Some(Format::Qcow2) {
            return Err(element.unsupported("'discard_no_unref' only works with qcow2 disk format"));
        }
        if disk.readonly {
            return Err(element.unsupported("'discard_no_unref' is not compatible with read-only disk"));
        }
    }
    if disk.driver.copy_on_read && disk.readonly {
        return Err(element.unsupported(format!(
            "copy_on_read is not compatible with read-only disk '{target}'"
        )));
    }
    if let (Device::Disk, true, Some(bus @ ("ide" | "sata"))) = (disk.device, disk.readonly, bus.as_deref()) {
        return Err(element.unsupported(format!("readonly {bus} disks are not supported")));
    }
    if disk.transient.is_some() {
        if disk.readonly {
            return Err(element.unsupported(format!("transient disk '{target}' must not be read-only")));
        }
        if disk.device != Device::Disk {
            return Err(element.unsupported(format!(
                "disk type '{}' of '{target}' does not support transient",
                disk.device.as_str()
            )));
        }
    }
    let encrypted = active
        .details
        .encryption
        .as_ref()
        .is_some_and(|encryption| encryption.engine.as_deref() != Some("librbd"));
    let several = !encrypted && active.format.is_none_or(|format| format == Format::Raw);
    if disk.shareable && !disk.readonly && !several {
        return Err(element.unsupported(format!(
            "shared access for disk '{target}' requires use of supported storage format"
        )));
    }
    for (index, layer) in disk.layers.iter().enumerate() {
        let writable = index == 0 && !disk.readonly;
        self::layer(layer, writable, element)?;
        if let Some(store) = &layer.data_store {
            if layer.format != Some(Format::Qcow2) {
                return Err(element.unsupported("<dataStore> feature available only with qcow2 images"));
            }
            if store.format != Some(Format::Raw) {
                return Err(element.unsupported("only 'raw' images supported as <dataStore>"));
            }
            self::layer(store, false, element)?;
        }
    }
    Ok(())
}

/// Whoever serves a disk decides how: hardly anything can be said of it here. In libvirt's order.
fn vhost_user(bus: Option<&str>, element: Element<'_, '_>) -> Result<()> {
    if bus != Some("virtio") {
        return Err(element.unsupported("vhostuser disk supports only virtio bus"));
    }
    if !matches!(element.attribute("snapshot"), None | Some("no" | "default")) {
        return Err(element.unsupported("only snapshot=no is supported with vhostuser disk"));
    }
    let refuse =
        |name: &str| Err(element.unsupported(format!("{name} is not supported with vhostuser disk")));
    let driver = element.child("driver");
    for (name, as_named) in [
        ("cache", "cache"),
        ("error_policy", "error_policy"),
        ("rerror_policy", "error_policy"),
        ("io", "io"),
        ("ioeventfd", "ioeventfd"),
        ("copy_on_read", "copy_on_read"),
        ("discard", "discard"),
        ("detect_zeroes", "detect_zeroes"),
    ] {
        let said = driver.and_then(|driver| driver.attribute(name));
        if said.is_some_and(|said| said != "default") {
            return refuse(as_named);
        }
    }
    let source = element.child("source");
    let within = |name| {
        source
            .and_then(|source| source.child(name))
            .or_else(|| element.child(name))
    };
    let cache = driver.and_then(|driver| driver.child("metadata_cache"));
    let device = element.attribute("device");
    for (name, said) in [
        ("metadata_cache", cache.is_some()),
        ("iotune", element.child("iotune").is_some()),
        ("backingStore", element.child("backingStore").is_some()),
        ("encryption", within("encryption").is_some()),
        (
            "readonly",
            device == Some("cdrom") || element.child("readonly").is_some(),
        ),
        ("shareable", element.child("shareable").is_some()),
        ("transient", element.child("transient").is_some()),
        (
            "serial",
            element
                .child("serial")
                .is_some_and(|serial| !serial.text().is_empty()),
        ),
        ("wwn", element.child("wwn").is_some()),
        ("vendor", element.child("vendor").is_some()),
        ("product", element.child("product").is_some()),
        ("auth", within("auth").is_some()),
        ("geometry", element.child("geometry").is_some()),
        ("blockio", element.child("blockio").is_some()),
    ] {
        if said {
            return refuse(name);
        }
    }
    Ok(())
}

/// What holds for every layer.
fn layer(layer: &Layer, writable: bool, element: Element<'_, '_>) -> Result<()> {
    let refuse = |message: String| Err(element.unsupported(message));
    let source = layer.source();
    let is_dir = source.is_some_and(|source| matches!(source.location, Location::Dir(_)));
    match layer.format {
        Some(Format::Cow) => return refuse("'cow' storage format is not supported".to_owned()),
        Some(Format::Dir) => {
            return refuse(
                "'directory' storage format is not directly supported by QEMU, use 'dir' disk type instead"
                    .to_owned(),
            );
        }
        Some(Format::Iso) => {
            return refuse(
                "storage format 'iso' is not directly supported by QEMU, use 'raw' instead".to_owned(),
            );
        }
        Some(Format::Fat) if !is_dir => {
            return refuse("storage format 'fat' is supported only with 'dir' storage type".to_owned());
        }
        Some(format) if is_dir && format != Format::Fat => {
            return refuse("storage type 'dir' requires use of storage format 'fat'".to_owned());
        }
        Some(Format::Fat) if writable => {
            return refuse("virtual FAT storage can't be accessed in read-write mode".to_owned());
        }
        _ => {}
    }
    if layer.cache_size.is_some() && layer.format != Some(Format::Qcow2) {
        return refuse("metadata cache max size control is supported only with qcow2 images".to_owned());
    }
    if let Some(encryption) = &layer.details.encryption {
        check_encryption(encryption, layer, element)?;
    }
    let Some(source) = source else { return Ok(()) };
    if let Location::Nvme(nvme) = &source.location
        && nvme.namespace == 0
    {
        return refuse("NVMe namespace can't be zero".to_owned());
    }
    let Some(network) = source.network() else {
        return Ok(());
    };
    if layer.details.tls_hostname.is_some() && network.protocol != Protocol::Nbd {
        return refuse("'tlsHostname' field is supported only with NBD disks".to_owned());
    }
    match network.protocol {
        Protocol::Tftp => refuse("'tftp' protocol is not supported with this QEMU binary".to_owned()),
        Protocol::Sheepdog => {
            refuse("'sheepdog' protocol is no longer supported by any hypervisor driver".to_owned())
        }
        Protocol::Nfs => match network.hosts.as_slice() {
            [host] if host.transport != Transport::Tcp => {
                refuse("'nfs' host must use TCP protocol".to_owned())
            }
            [host] if host.port.is_some() => {
                refuse("port cannot be specified in 'nfs' protocol host".to_owned())
            }
            [_] => Ok(()),
            _ => refuse("'nfs' protocol requires the usage of exactly one host".to_owned()),
        },
        _ => Ok(()),
    }
}

fn check_encryption(encryption: &Encryption, layer: &Layer, element: Element<'_, '_>) -> Result<()> {
    let refuse = |message: String| Err(element.unsupported(message));
    let engine = encryption.engine.as_deref().filter(|engine| *engine != "default");
    if engine == Some("librbd") {
        return match layer.source() {
            Some(source) if source.network().is_some() => Ok(()),
            _ => refuse("librbd encryption is supported only with RBD backed disks".to_owned()),
        };
    }
    match encryption.format.as_str() {
        "default" | "qcow" => return refuse("old qcow/qcow2 encryption is not supported".to_owned()),
        format @ ("luks2" | "luks-any") => {
            return refuse(format!(
                "'{format}' is currently not supported by the qemu encryption engine"
            ));
        }
        _ => {}
    }
    if encryption.secrets.len() > 1 {
        return refuse("qemu encryption engine expects only a single secret".to_owned());
    }
    match layer.format {
        Some(Format::Raw | Format::Qcow2) | None => Ok(()),
        _ => refuse("encryption is supported only with 'raw' and 'qcow2' image format".to_owned()),
    }
}
