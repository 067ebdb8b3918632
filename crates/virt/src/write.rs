//! Elements of a chain as libvirt writes them, from the same values that are read.

use crate::model::{Auth, Details, Encryption, Layer, Place, SecretUse};
use crate::numbered::{RunningLayer, RunningStore};
use catena::reference::{Source, XmlElement};
use catena_format::Format;

/// A `<backingStore>` around the layers below it, which are written already.
pub(crate) fn backing_store(
    source: &Source,
    format: Format,
    index: Option<u32>,
    store: Option<(&Source, Option<u32>)>,
    below: Option<&str>,
) -> String {
    let mut element = XmlElement::new("source");
    place(&mut element, source, &Details::default(), None);
    if let Some((store, index)) = store {
        element.child(&data_store_element(store, &Details::default(), index));
    }
    around(source.type_name(), index, format, None, &element, below)
}

/// A `<backingStore>` of a layer that XML gave.
pub(crate) fn given_backing_store(layer: &Layer, indices: Indices, below: Option<&str>) -> String {
    let format = layer.format.unwrap_or(Format::Raw);
    // The number of a layer below the active one stands on its own element.
    let index = indices.layer;
    let element = given_source(
        layer,
        Indices {
            layer: None,
            ..indices
        },
    );
    around(
        layer.type_name(),
        index,
        format,
        layer.cache_size,
        &element,
        below,
    )
}

/// A `<backingStore>` of a layer that was detected, in live XML.
pub(crate) fn found_backing_store(
    layer: &RunningLayer,
    store: Option<(&Source, Option<u32>)>,
    below: Option<&str>,
) -> String {
    let mut element = XmlElement::new("source");
    place(&mut element, &layer.source, &layer.details, None);
    if let Some((store, index)) = store {
        element.child(&data_store_element(store, &layer.details, index));
    }
    around(
        layer.source.type_name(),
        Some(layer.index),
        layer.format,
        None,
        &element,
        below,
    )
}

/// A data file that was detected, as if the layer's XML gave it.
pub(crate) fn found_store(layer: &Layer, store: &RunningStore) -> Layer {
    Layer {
        place: Place::Image(store.source.clone()),
        format: Some(Format::Raw),
        cache_size: None,
        details: store.details.clone(),
        data_store: None,
        spans: layer.spans.clone(),
    }
}

/// Numbers of a live layer and of its data file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Indices {
    pub layer: Option<u32>,
    pub store: Option<u32>,
}

fn around(
    kind: &str,
    index: Option<u32>,
    format: Format,
    cache: Option<u64>,
    source: &XmlElement,
    below: Option<&str>,
) -> String {
    let mut element = XmlElement::new("backingStore");
    element.attribute("type", kind);
    element.attribute_if("index", index.map(|index| index.to_string()).as_deref());
    let mut format_element = XmlElement::new("format");
    format_element.attribute("type", format.libvirt());
    if let Some(bytes) = cache {
        let mut size = XmlElement::new("max_size");
        size.attribute("unit", "bytes");
        let mut metadata = XmlElement::new("metadata_cache");
        metadata.child_text(&size, &bytes.to_string());
        format_element.child(&metadata);
    }
    element.child(&format_element);
    element.child(source);
    if let Some(below) = below {
        element.written(below);
    }
    element.finish()
}

/// A `<dataStore>`.
pub(crate) fn data_store(source: &Source) -> String {
    data_store_element(source, &Details::default(), None).finish()
}

fn data_store_element(source: &Source, details: &Details, index: Option<u32>) -> XmlElement {
    let mut element = XmlElement::new("dataStore");
    element.attribute("type", source.type_name());
    let mut format = XmlElement::new("format");
    format.attribute("type", "raw");
    element.child(&format);
    let mut inner = XmlElement::new("source");
    place(&mut inner, source, details, index);
    element.child(&inner);
    element
}

/// The `<source>` of a layer that XML gave, as libvirt writes it.
pub(crate) fn given_source(layer: &Layer, indices: Indices) -> XmlElement {
    let mut element = XmlElement::new("source");
    match &layer.place {
        Place::Image(source) => place(&mut element, source, &layer.details, indices.layer),
        Place::Volume {
            pool, volume, mode, ..
        } => {
            element.attribute("pool", pool);
            element.attribute("volume", volume);
            element.attribute_if("mode", mode.as_deref());
            beside(&mut element, &layer.details, indices.layer);
            inside(&mut element, true, None, &layer.details);
        }
        Place::VhostUser { path } => {
            element.attribute("type", "unix");
            element.attribute("path", path.to_string_lossy());
        }
        Place::VhostVdpa { dev } => element.attribute("dev", dev.to_string_lossy()),
        Place::Empty => {}
    }
    if let Some(store) = &layer.data_store
        && let Some(source) = store.source()
    {
        element.child(&data_store_element(source, &store.details, indices.store));
    }
    element
}

/// Where an image is, and what goes with that, in libvirt's order.
fn place(element: &mut XmlElement, source: &Source, details: &Details, index: Option<u32>) {
    // Cookies are secrets to libvirt, which it shows only to those who ask for them.
    let mut shown = source.clone();
    if let catena::reference::Location::Network(network) = &mut shown.location {
        network.cookies.clear();
    }
    *element = shown.to_libvirt_element();
    beside(element, details, index);
    inside(element, source.network().is_none(), Some(source), details);
}

/// The attributes that follow the place.
fn beside(element: &mut XmlElement, details: &Details, index: Option<u32>) {
    element.attribute_if("tls", details.tls.map(yes_no));
    element.attribute_if("tlsHostname", details.tls_hostname.as_deref());
    element.attribute_if("fdgroup", details.fd_group.as_deref());
    element.attribute_if("startupPolicy", details.startup_policy.as_deref());
    element.attribute_if("index", index.map(|index| index.to_string()).as_deref());
}

fn yes_no(yes: bool) -> &'static str {
    if yes { "yes" } else { "no" }
}

/// The children that follow the place; `labelled` says whether labels are among them.
fn inside(element: &mut XmlElement, labelled: bool, source: Option<&Source>, details: &Details) {
    if let Some(name) = &details.initiator {
        let mut iqn = XmlElement::new("iqn");
        iqn.attribute("name", name);
        let mut initiator = XmlElement::new("initiator");
        initiator.child(&iqn);
        element.child(&initiator);
    }
    if let Some(source) = source {
        element.slices(source);
    }
    if labelled {
        for label in &details.seclabels {
            let mut seclabel = XmlElement::new("seclabel");
            seclabel.attribute_if("model", label.model.as_deref());
            if label.skipped {
                seclabel.attribute("labelskip", "yes");
            } else {
                seclabel.attribute("relabel", yes_no(label.relabel.unwrap_or(true)));
            }
            if let Some(text) = &label.label {
                seclabel.child_text(&XmlElement::new("label"), text);
            }
            element.child(&seclabel);
        }
    }
    if let Some(auth) = details.auth.as_ref().filter(|auth| !auth.outside) {
        element.child(&auth_element(auth));
    }
    if let Some(encryption) = details
        .encryption
        .as_ref()
        .filter(|encryption| !encryption.outside)
    {
        element.child(&encryption_element(encryption));
    }
    if let Some(reservations) = &details.reservations {
        let mut inner = XmlElement::new("reservations");
        inner.attribute("managed", yes_no(reservations.managed));
        if let Some(path) = &reservations.socket {
            let mut socket = XmlElement::new("source");
            socket.attribute("type", "unix");
            socket.attribute("path", path);
            socket.attribute("mode", "client");
            inner.child(&socket);
        }
        element.child(&inner);
    }
}

fn auth_element(auth: &Auth) -> XmlElement {
    let mut element = XmlElement::new("auth");
    element.attribute("username", &auth.user);
    element.child(&secret(auth.secret_type.as_deref(), &auth.secret));
    element
}

fn encryption_element(encryption: &Encryption) -> XmlElement {
    let mut element = XmlElement::new("encryption");
    element.attribute("format", &encryption.format);
    let engine = encryption.engine.as_deref().filter(|engine| *engine != "default");
    element.attribute("engine", engine.unwrap_or("qemu"));
    for one in &encryption.secrets {
        element.child(&secret(Some("passphrase"), one));
    }
    element
}

fn secret(kind: Option<&str>, secret: &SecretUse) -> XmlElement {
    let mut element = XmlElement::new("secret");
    element.attribute_if("type", kind);
    match secret {
        SecretUse::Uuid(uuid) => element.attribute("uuid", uuid),
        SecretUse::Usage(usage) => element.attribute("usage", usage),
    }
    element
}
