//! A `<disk>`: what is the whole disk's, and the layers in it.

use super::element::{Element, Result};
use super::{source, throttle};
use crate::error::XmlErrorKind;
use crate::limits::MAX_LAYERS;
use crate::model::{
    Below, CacheMode, Device, Discard, Disk, Driver, Layer, Mirror, Place, Spans, Transient, Zeroes,
};
use crate::snapshot::Mode;
use catena_format::Format;

pub(super) fn read(element: Element<'_, '_>) -> Result<Disk> {
    let kind = element.choice("type", &source::TYPES)?.unwrap_or("file");
    let device = match element.choice("device", &["disk", "cdrom", "floppy", "lun"])? {
        Some("cdrom") => Device::Cdrom,
        Some("floppy") => Device::Floppy,
        Some("lun") => Device::Lun,
        _ => Device::Disk,
    };
    let snapshot = element.choice("snapshot", &["default", "no", "internal", "external", "manual"])?;
    let mut top = active(element, kind)?;
    let driver = read_driver(element, &mut top)?;
    let mut layers = vec![top];
    let below = backing(element, &mut layers)?;
    let target = element.child("target");
    if let Some(target) = target {
        let buses = [
            "none", "ide", "fdc", "scsi", "virtio", "xen", "usb", "uml", "sata", "sd",
        ];
        target.choice("bus", &buses)?;
    }
    let transient = match element.child("transient") {
        Some(transient) => Some(Transient {
            shared: transient.yes_no("shareBacking")? == Some(true),
        }),
        None => None,
    };
    Ok(Disk {
        device,
        target: target.and_then(|target| target.filled("dev")).map(str::to_owned),
        bus: target
            .and_then(|target| target.attribute("bus"))
            .map(str::to_owned),
        driver,
        layers,
        below,
        stores: element.children("backingStore").map(Element::span).collect(),
        mirror: element.child("mirror").map(mirror),
        readonly: device == Device::Cdrom || element.child("readonly").is_some(),
        shareable: element.child("shareable").is_some(),
        transient,
        snapshot: snapshot.and_then(Mode::from_libvirt),
        throttle: throttle::filters(element)?,
        span: element.span(),
    })
}

/// The active layer, without its format.
fn active(element: Element<'_, '_>, kind: &'static str) -> Result<Layer> {
    let mut layer = match element.child("source") {
        Some(source) => source::layer(element, source, kind)?,
        None => Layer {
            place: Place::Empty,
            format: None,
            cache_size: None,
            details: crate::model::Details::default(),
            data_store: None,
            spans: Spans {
                element: element.span(),
                source: None,
                path: None,
                kind: element.value_span("type"),
                format: None,
            },
        },
    };
    if let Some(auth) = element.child("auth") {
        if layer.details.auth.is_some() {
            return Err(auth.malformed("an <auth> definition already found for disk source"));
        }
        layer.details.auth = Some(source::auth(auth, true)?);
    }
    if let Some(encryption) = element.child("encryption") {
        if layer.details.encryption.is_some() {
            return Err(encryption.malformed("an <encryption> definition already found for disk source"));
        }
        layer.details.encryption = Some(source::encryption(encryption, true)?);
    }
    if let Some(auth) = &layer.details.auth {
        source::check_auth(element, auth, layer.source())?;
    }
    Ok(layer)
}

fn read_driver(element: Element<'_, '_>, top: &mut Layer) -> Result<Driver> {
    let Some(driver) = element.child("driver") else {
        return Ok(Driver::default());
    };
    if let Some(word) = driver.attribute("type") {
        let format = match word {
            // Xen's way to say raw.
            "aio" => Some(Format::Raw),
            word => Format::from_libvirt(word),
        };
        top.format =
            Some(format.ok_or_else(|| driver.unsupported(format!("unknown driver format value '{word}'")))?);
        top.spans.format = driver.value_span("type");
    }
    top.cache_size = source::cache_size(driver)?;
    let cache = driver.choice(
        "cache",
        &[
            "default",
            "none",
            "writethrough",
            "writeback",
            "directsync",
            "unsafe",
        ],
    )?;
    let io = driver.choice("io", &["default", "native", "threads", "io_uring"])?;
    driver.choice(
        "error_policy",
        &["default", "stop", "report", "ignore", "enospace"],
    )?;
    driver.choice("rerror_policy", &["default", "stop", "report", "ignore"])?;
    Ok(Driver {
        name: driver.attribute("name").map(str::to_owned),
        cache: match cache {
            Some("none") => CacheMode::None,
            Some("writethrough") => CacheMode::Writethrough,
            Some("writeback") => CacheMode::Writeback,
            Some("directsync") => CacheMode::Directsync,
            Some("unsafe") => CacheMode::Unsafe,
            _ => CacheMode::Default,
        },
        io: io.map(str::to_owned),
        discard: match driver.choice("discard", &["default", "unmap", "ignore"])? {
            Some("unmap") => Some(Discard::Unmap),
            Some("ignore") => Some(Discard::Ignore),
            _ => None,
        },
        detect_zeroes: match driver.choice("detect_zeroes", &["default", "off", "on", "unmap"])? {
            Some("off") => Some(Zeroes::Off),
            Some("on") => Some(Zeroes::On),
            Some("unmap") => Some(Zeroes::Unmap),
            _ => None,
        },
        copy_on_read: driver.on_off("copy_on_read")? == Some(true),
        discard_no_unref: driver.on_off("discard_no_unref")?,
        span: Some(driver.span()),
    })
}

/// The layers below the active one, as they nest.
fn backing(disk: Element<'_, '_>, layers: &mut Vec<Layer>) -> Result<Below> {
    let mut above = disk;
    loop {
        let Some(store) = above.child("backingStore") else {
            return Ok(Below::Unsaid);
        };
        // Whatever it holds: without a type it ends the chain.
        let Some(kind) = store.attribute("type") else {
            return Ok(Below::Closed(store.span()));
        };
        let known = source::TYPES.iter().find(|known| **known == kind);
        let format = store
            .child("format")
            .filter(|format| format.attribute("type").is_some());
        let format = format.ok_or_else(|| store.malformed("missing disk backing store format"))?;
        let source_element = store
            .child("source")
            .ok_or_else(|| store.malformed("missing disk backing store source"))?;
        let kind = known.ok_or_else(|| store.malformed(format!("unknown storage source type '{kind}'")))?;
        let mut layer = source::layer(store, source_element, kind)?;
        source::format(format, &mut layer)?;
        layer.details.index = store.attribute("index").and_then(|index| index.parse().ok());
        if let Some(data_store) = store.child("dataStore") {
            layer.data_store = Some(Box::new(source::data_store(data_store)?));
        }
        layers.push(layer);
        if layers.len() > MAX_LAYERS {
            return Err(store.unsupported(format!(
                "backing chains more than {MAX_LAYERS} layers deep are not supported for disk '{}'",
                disk.child_attribute("target", "dev").unwrap_or_default()
            )));
        }
        above = store;
    }
}

/// What a live document says of a job. libvirt ignores it in what users give, so nothing of it is an error.
fn mirror(element: Element<'_, '_>) -> Mirror {
    let kind = element.attribute("type").unwrap_or_default();
    let kind = source::TYPES.iter().find(|known| **known == kind);
    let layer = match (kind, element.child("source")) {
        (Some(kind), Some(at)) => source::layer(element, at, kind).ok(),
        _ => None,
    };
    let layer = layer.map(|mut layer| {
        layer.format = element
            .child_attribute("format", "type")
            .and_then(Format::from_libvirt);
        layer
    });
    Mirror {
        job: element.attribute("job").unwrap_or("copy").to_owned(),
        ready: element.attribute("ready").map(str::to_owned),
        layer,
    }
}

/// The disk has no name, or nothing in it.
pub(super) fn missing(element: Element<'_, '_>, what: &str, device: &str) -> crate::error::XmlError {
    element.error(
        XmlErrorKind::Missing,
        format!("missing {what} information for device {device}"),
    )
}
