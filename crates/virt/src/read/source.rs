//! A layer's `<source>`, and what describes a layer beside it: `<format>`, `<dataStore>`, `<auth>`, `<encryption>`.

use super::element::{Element, Result, number};
use super::network;
use crate::error::XmlErrorKind;
use crate::model::{Auth, Details, Encryption, Layer, Place, Reservations, Seclabel, SecretUse, Spans};
use catena::reference::{Location, Nvme, Protocol, Slice, Source};
use catena_format::Format;
use std::path::PathBuf;

/// The types of storage that XML may name.
pub(super) const TYPES: [&str; 8] = [
    "file",
    "block",
    "dir",
    "network",
    "volume",
    "nvme",
    "vhostuser",
    "vhostvdpa",
];

/// A layer without its format.
pub(super) fn layer(element: Element<'_, '_>, source: Element<'_, '_>, kind: &str) -> Result<Layer> {
    let place = place(source, kind)?;
    let place = match (place, slice(source)?) {
        (Place::Image(image), slice) => Place::Image(Source { slice, ..image }),
        (other, _) => other,
    };
    let path = match kind {
        "file" => Some("file"),
        "block" | "vhostvdpa" => Some("dev"),
        "dir" => Some("dir"),
        "vhostuser" => Some("path"),
        _ => None,
    };
    let data_store = match source.child("dataStore") {
        Some(store) => Some(Box::new(data_store(store)?)),
        None => None,
    };
    let details = details(source, kind)?;
    if let (Some(auth), Place::Image(image)) = (&details.auth, &place) {
        check_auth(source, auth, Some(image))?;
    }
    Ok(Layer {
        place,
        format: None,
        cache_size: None,
        details,
        data_store,
        spans: Spans {
            element: element.span(),
            source: Some(source.span()),
            path: path.and_then(|name| source.value_span(name)),
            kind: element.value_span("type"),
            format: None,
        },
    })
}

fn place(source: Element<'_, '_>, kind: &str) -> Result<Place> {
    let path = |name: &str| source.filled(name).map(PathBuf::from);
    let image =
        |location: Option<Location>| location.map_or(Place::Empty, |location| Place::Image(location.into()));
    Ok(match kind {
        "file" => image(path("file").map(Location::File)),
        "block" => image(path("dev").map(Location::Block)),
        "dir" => image(path("dir").map(Location::Dir)),
        "network" => Place::Image(network::read(source)?.into()),
        "nvme" => Place::Image(Location::Nvme(nvme(source)?).into()),
        "volume" => {
            let mode = source.choice("mode", &["host", "direct"])?;
            match (source.attribute("pool"), source.attribute("volume")) {
                (Some(pool), Some(volume)) => Place::Volume {
                    pool: pool.to_owned(),
                    volume: volume.to_owned(),
                    mode: mode.map(str::to_owned),
                    found: None,
                    capacity: None,
                },
                (None, None) => Place::Empty,
                _ => {
                    return Err(source
                        .malformed("'pool' and 'volume' must be specified together for 'pool' type source"));
                }
            }
        }
        "vhostuser" => {
            let kind = source
                .attribute("type")
                .ok_or_else(|| source.malformed("missing 'type' attribute for vhostuser disk source"))?;
            if kind != "unix" {
                return Err(source.malformed(format!(
                    "invalid 'type' attribute '{kind}' for vhostuser disk source"
                )));
            }
            let path = source
                .attribute("path")
                .ok_or_else(|| source.malformed("missing 'path' attribute for vhostuser disk source"))?;
            Place::VhostUser { path: path.into() }
        }
        "vhostvdpa" => Place::VhostVdpa {
            dev: source.required("dev")?.into(),
        },
        other => return Err(source.malformed(format!("unexpected disk type {other}"))),
    })
}

fn nvme(source: Element<'_, '_>) -> Result<Nvme> {
    let kind = source
        .attribute("type")
        .ok_or_else(|| source.malformed("missing 'type' attribute to disk source"))?;
    if kind != "pci" {
        return Err(source.malformed(format!("unsupported source type '{kind}'")));
    }
    source.required("namespace")?;
    let namespace = source.number("namespace")?.unwrap_or_default();
    source.yes_no("managed")?;
    let address = source
        .child("address")
        .ok_or_else(|| source.malformed("NVMe disk source is missing address"))?;
    let part = |name: &str, most: u64| -> Result<u64> {
        let value = address.number(name)?.unwrap_or_default();
        if value > most {
            let text = address.attribute(name).unwrap_or_default();
            return Err(address.malformed(format!(
                "Invalid PCI address {name}='{text}', must be <= {most:#x}"
            )));
        }
        Ok(value)
    };
    // Each is within the bound just tested.
    let small = |value: u64| u8::try_from(value).unwrap_or(u8::MAX);
    Ok(Nvme {
        domain: u32::try_from(part("domain", 0xffff_ffff)?).unwrap_or(u32::MAX),
        bus: small(part("bus", 0xff)?),
        slot: small(part("slot", 0x1f)?),
        function: small(part("function", 7)?),
        namespace,
    })
}

/// The part of the object that is the layer. libvirt looks for the first slice of its storage alone.
fn slice(source: Element<'_, '_>) -> Result<Option<Slice>> {
    let slices = source
        .child("slices")
        .into_iter()
        .flat_map(|slices| slices.children("slice"));
    let Some(slice) = slices
        .into_iter()
        .find(|slice| slice.attribute("type") == Some("storage"))
    else {
        return Ok(None);
    };
    let (Some(offset), Some(size)) = (slice.attribute("offset"), slice.attribute("size")) else {
        return Err(slice.malformed("missing offset or size attribute of slice"));
    };
    let read = |name: &str, value: &str| {
        let plain = value.bytes().all(|byte| byte.is_ascii_digit());
        number(value).filter(|_| plain).ok_or_else(|| {
            slice.malformed(format!(
                "malformed value '{value}' of '{name}' attribute of slice"
            ))
        })
    };
    Ok(Some(Slice {
        offset: read("offset", offset)?,
        size: Some(read("size", size)?),
    }))
}

fn details(source: Element<'_, '_>, kind: &str) -> Result<Details> {
    let network = kind == "network";
    let policy = source.choice(
        "startupPolicy",
        &["default", "mandatory", "requisite", "optional"],
    )?;
    let iscsi = network && source.attribute("protocol") == Some("iscsi");
    Ok(Details {
        // libvirt drops what users give, so nonsense there is no error.
        index: source.attribute("index").and_then(|index| index.parse().ok()),
        startup_policy: policy
            .filter(|policy| *policy != "default" && !network)
            .map(str::to_owned),
        fd_group: source
            .attribute("fdgroup")
            .filter(|_| kind == "file")
            .map(str::to_owned),
        tls: if network { source.yes_no("tls")? } else { None },
        tls_hostname: source
            .attribute("tlsHostname")
            .filter(|_| network)
            .map(str::to_owned),
        initiator: source
            .child("initiator")
            .filter(|_| iscsi)
            .and_then(|initiator| initiator.child_attribute("iqn", "name"))
            .map(str::to_owned),
        auth: source
            .child("auth")
            .map(|element| auth(element, false))
            .transpose()?,
        encryption: source
            .child("encryption")
            .map(|element| encryption(element, false))
            .transpose()?,
        reservations: source.child("reservations").map(reservations).transpose()?,
        seclabels: seclabels(source)?,
    })
}

pub(super) fn auth(element: Element<'_, '_>, outside: bool) -> Result<Auth> {
    let user = element
        .attribute("username")
        .ok_or_else(|| element.malformed("missing username for auth"))?;
    let secret = element
        .child("secret")
        .ok_or_else(|| element.malformed("Missing <secret> element in auth"))?;
    let secret_type = secret.attribute("type");
    if let Some(word) =
        secret_type.filter(|word| !matches!(*word, "volume" | "ceph" | "iscsi" | "tls" | "vtpm"))
    {
        return Err(secret.unsupported(format!("unknown secret type '{word}'")));
    }
    Ok(Auth {
        user: user.to_owned(),
        secret_type: secret_type.map(str::to_owned),
        secret: secret_use(secret)?,
        outside,
    })
}

/// Whether the secret is one for that protocol.
pub(super) fn check_auth(element: Element<'_, '_>, auth: &Auth, source: Option<&Source>) -> Result<()> {
    let expected = match source.and_then(Source::network).map(|network| network.protocol) {
        Some(Protocol::Iscsi) => "iscsi",
        Some(Protocol::Rbd) => "ceph",
        _ => return Ok(()),
    };
    match auth.secret_type.as_deref() {
        Some(word) if word != expected => Err(element.unsupported(format!("invalid secret type '{word}'"))),
        _ => Ok(()),
    }
}

fn secret_use(secret: Element<'_, '_>) -> Result<SecretUse> {
    match (secret.attribute("uuid"), secret.attribute("usage")) {
        (None, None) => Err(secret.malformed("missing secret uuid or usage attribute")),
        (Some(_), Some(_)) => Err(secret.malformed("either secret uuid or usage expected")),
        (None, Some(usage)) => Ok(SecretUse::Usage(usage.to_owned())),
        (Some(uuid), None) => {
            let digits: String = uuid.chars().filter(|c| !matches!(c, '-' | ' ')).collect();
            if digits.len() != 32 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(secret.malformed(format!("invalid secret uuid '{uuid}'")));
            }
            Ok(SecretUse::Uuid(uuid.to_owned()))
        }
    }
}

pub(super) fn encryption(element: Element<'_, '_>, outside: bool) -> Result<Encryption> {
    let format = element
        .attribute("format")
        .ok_or_else(|| element.malformed("unknown volume encryption format"))?;
    if !matches!(format, "default" | "qcow" | "luks" | "luks2" | "luks-any") {
        return Err(element.unsupported(format!("unknown volume encryption format type {format}")));
    }
    let engine = element.choice("engine", &["default", "qemu", "librbd"])?;
    let mut secrets = Vec::new();
    for secret in element.children("secret") {
        match secret.attribute("type") {
            Some("passphrase") => secrets.push(secret_use(secret)?),
            Some(word) => {
                return Err(secret.unsupported(format!("unknown volume encryption secret type {word}")));
            }
            None => return Err(secret.malformed("unknown volume encryption secret type")),
        }
    }
    let cipher = if format.starts_with("luks") {
        cipher(element)?
    } else {
        false
    };
    Ok(Encryption {
        format: format.to_owned(),
        engine: engine.map(str::to_owned),
        secrets,
        cipher,
        outside,
    })
}

/// Whether there is a `<cipher>`, which is for volumes that are to be made.
fn cipher(element: Element<'_, '_>) -> Result<bool> {
    let cipher = element.child("cipher");
    if let Some(cipher) = cipher {
        if cipher.attribute("name").is_none() {
            return Err(cipher.malformed("cipher info missing 'name' attribute"));
        }
        let size = cipher.required("size")?;
        let plain = !size.is_empty() && size.bytes().all(|byte| byte.is_ascii_digit());
        if !plain || size.parse::<u32>().is_err() {
            return Err(cipher.malformed(format!(
                "Invalid value for attribute 'size' in element 'cipher': '{size}'. Expected non-negative integer value"
            )));
        }
    }
    if let Some(ivgen) = element.child("ivgen") {
        if ivgen.attribute("name").is_none() {
            return Err(ivgen.malformed("missing ivgen info name string"));
        }
        if cipher.is_none() {
            return Err(ivgen.malformed("ivgen element found, but cipher is missing"));
        }
    }
    Ok(cipher.is_some())
}

fn reservations(element: Element<'_, '_>) -> Result<Reservations> {
    element.required("managed")?;
    let managed = element.yes_no("managed")? == Some(true);
    if managed {
        return Ok(Reservations {
            managed,
            socket: None,
        });
    }
    let source = element.child("source");
    let attribute = |name: &str| source.and_then(|source| source.attribute(name));
    let kind =
        attribute("type").ok_or_else(|| element.malformed("missing connection type for <reservations/>"))?;
    let path = attribute("path").ok_or_else(|| element.malformed("missing path for <reservations/>"))?;
    let mode =
        attribute("mode").ok_or_else(|| element.malformed("missing connection mode for <reservations/>"))?;
    if kind != "unix" {
        return Err(element.malformed(format!("unsupported connection type for <reservations/>: {kind}")));
    }
    if mode != "client" {
        return Err(element.malformed(format!("unsupported connection mode for <reservations/>: {mode}")));
    }
    Ok(Reservations {
        managed,
        socket: Some(path.to_owned()),
    })
}

fn seclabels(source: Element<'_, '_>) -> Result<Vec<Seclabel>> {
    let mut labels: Vec<Seclabel> = Vec::new();
    for element in source.children("seclabel") {
        let model = element.attribute("model").map(str::to_owned);
        if let Some(name) = &model
            && labels.iter().any(|label| label.model.as_ref() == Some(name))
        {
            return Err(element.error(
                XmlErrorKind::Missing,
                format!("seclabel for model {name} is already provided"),
            ));
        }
        let relabel = element.yes_no("relabel")?;
        let label = element.child("label").map(Element::text);
        if label.is_some() && relabel == Some(false) {
            return Err(element.malformed(format!(
                "Cannot specify a label if relabelling is turned off. model={}",
                model.as_deref().unwrap_or("<null>")
            )));
        }
        labels.push(Seclabel {
            model,
            relabel,
            skipped: element.attribute("labelskip") == Some("yes"),
            label,
        });
    }
    Ok(labels)
}

/// `<format>` of a layer below the active one.
pub(super) fn format(element: Element<'_, '_>, layer: &mut Layer) -> Result<()> {
    let word = element.attribute("type").unwrap_or_default();
    let format = Format::from_libvirt(word);
    layer.format =
        Some(format.ok_or_else(|| element.malformed(format!("unknown storage source format '{word}'")))?);
    layer.spans.format = element.value_span("type");
    layer.cache_size = cache_size(element)?;
    Ok(())
}

/// `<metadata_cache>` of a `<driver>` or `<format>`.
pub(super) fn cache_size(element: Element<'_, '_>) -> Result<Option<u64>> {
    let Some(size) = element
        .child("metadata_cache")
        .and_then(|cache| cache.child("max_size"))
    else {
        return Ok(None);
    };
    let text = size.text();
    let invalid = format!("Invalid value '{text}' for element or attribute './metadata_cache/max_size'");
    size.scaled(&invalid).map(Some)
}

pub(super) fn data_store(element: Element<'_, '_>) -> Result<Layer> {
    let kind = element.required("type")?;
    let format_element = element
        .child("format")
        .filter(|format| format.attribute("type").is_some())
        .ok_or_else(|| element.malformed("missing data file store format"))?;
    let source = element
        .child("source")
        .ok_or_else(|| element.malformed("missing disk data file store source"))?;
    let kind = TYPES
        .iter()
        .find(|known| **known == kind)
        .ok_or_else(|| element.malformed(format!("unknown storage source type '{kind}'")))?;
    if source.child("dataStore").is_some() || source.child("backingStore").is_some() {
        return Err(element.malformed(
            "The <source> of <dataStore> can't have another nested <dataStore> or <backingStore> element",
        ));
    }
    let mut layer = layer(element, source, kind)?;
    format(format_element, &mut layer)?;
    if layer.source().is_some_and(|source| source.slice.is_some()) {
        return Err(element.malformed("slices are not supported for <dataStore>"));
    }
    Ok(layer)
}

/// The overlay that a snapshot names for a disk; its format is qcow2 unless it says.
pub(super) fn snapshot_layer(element: Element<'_, '_>, source: Element<'_, '_>) -> Result<Layer> {
    let kind = element.choice("type", &TYPES)?.unwrap_or("file");
    let mut layer = layer(element, source, kind)?;
    if let Some(driver) = element.child("driver")
        && let Some(word) = driver.attribute("type")
    {
        let format = Format::from_libvirt(word);
        layer.format =
            Some(format.ok_or_else(|| driver.malformed(format!("unknown disk snapshot driver '{word}'")))?);
        layer.spans.format = driver.value_span("type");
    }
    if let Some(path) = layer.source().and_then(Source::path)
        && !path.is_absolute()
    {
        return Err(source.malformed(format!(
            "disk snapshot image path '{}' must be absolute",
            path.display()
        )));
    }
    Ok(layer)
}
