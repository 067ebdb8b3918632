//! Volumes of storage pools: where they are, libvirt alone knows, and whoever can ask it says so. What their documents say
//! of the images is as old as the pool's last look at them.

use crate::combine::{is_same, without_credentials};
use crate::model::{Document, Layer, Place, Volume};
use catena::chain::{Chain, Layer as Image};
use catena::doctor::{Code, Cure, Finding, Severity};
use catena::reference::{Location, Source};
use catena::{Policy, Start, detect};
use catena_format::Format;

impl Document {
    /// Looks for the volumes it names: `find` is given a pool's name and a volume's, and gives what libvirt says of it, if
    /// it knows it. What the pool says of the format, libvirt does not ask: what XML does not say is raw.
    ///
    /// # Errors
    ///
    /// Those of `find`, at the first.
    pub fn find_volumes<E>(
        &mut self,
        mut find: impl FnMut(&str, &str) -> Result<Option<Volume>, E>,
    ) -> Result<(), E> {
        for layer in self.disks.iter_mut().flat_map(|disk| &mut disk.layers) {
            if let Place::Volume { pool, volume, .. } = &layer.place
                && let Some(known) = find(pool, volume)?
            {
                layer.is_at(&known);
            }
        }
        Ok(())
    }
}

impl Layer {
    fn is_at(&mut self, volume: &Volume) {
        let Place::Volume { found, capacity, .. } = &mut self.place else {
            return;
        };
        *found = volume.source();
        *capacity = volume.capacity;
    }
}

impl Volume {
    /// Where its image is, if the document says that.
    pub fn source(&self) -> Option<Source> {
        let path = self.path.clone()?;
        Some(if self.block {
            Location::Block(path).into()
        } else {
            Location::File(path).into()
        })
    }

    /// The chain that its image begins, in the format that the document gives.
    ///
    /// # Errors
    ///
    /// A sentence, where the document does not say where the image is.
    pub fn chain(&self, policy: &Policy) -> Result<Chain, String> {
        let source = self
            .source()
            .ok_or("the volume's document has no <path>: where the image is, libvirt alone knows")?;
        let luks = self
            .encryption
            .as_ref()
            .is_some_and(|format| format.starts_with("luks"));
        let format = match self.format.unwrap_or(Format::Raw) {
            Format::Raw if luks => Format::Luks,
            format => format,
        };
        let start = Start {
            source,
            format: Some(format),
        };
        Ok(detect(&start, policy))
    }
}

/// Where a volume's document and its image disagree. `chain` is the volume's, from [`Volume::chain`].
pub fn volume_disagreements(volume: &Volume, chain: &Chain, policy: &Policy) -> Vec<Finding> {
    let Some(active) = chain.active() else {
        return Vec::new();
    };
    let mut findings: Vec<_> = size(0, volume.capacity, active).into_iter().collect();
    findings.extend(backing(volume, active, policy));
    findings
}

/// The size that a pool has for the image of a layer, against the image's own.
pub(crate) fn size(number: usize, capacity: Option<u64>, layer: &Image) -> Option<Finding> {
    let (stated, size) = (capacity?, layer.virtual_size()?);
    (stated != size).then(|| {
        Finding::new(
            Code::XmlSizeDiffers,
            Severity::Warning,
            (number, layer.name()),
            format!("the volume's XML states {stated} bytes, and the image has {size}"),
            "what is made of the volume by the XML gets another size than the image's guest sees",
            Cure::advice(
                "'virsh pool-refresh' has libvirt look at the image again; 'catena resize' gives the image the stated size",
            ),
        )
    })
}

/// The image below, in the document and in the header.
fn backing(volume: &Volume, active: &Image, policy: &Policy) -> Option<Finding> {
    let differs = |code, cause: String| {
        Some(Finding::new(
            code,
            Severity::Warning,
            (0, active.name()),
            cause,
            "guests start with what the header records, and libvirt's pool shows something else",
            Cure::advice("'virsh pool-refresh' has libvirt look at the image again"),
        ))
    };
    let recorded = active.description.backing.as_ref();
    let link = recorded.map(|recorded| without_credentials(&recorded.name));
    // An empty path is what libvirt writes for what it could not understand.
    let stated = volume
        .backing
        .as_ref()
        .filter(|(path, _)| !path.as_os_str().is_empty());
    match (stated, recorded, &link) {
        (Some((path, format)), Some(recorded), Some(link)) => {
            let found = active
                .backing_reference()
                .ok()
                .map(|reference| reference.resolve(&active.source));
            let given = Source::file(path);
            let same = found.as_ref().is_some_and(|found| is_same(found, &given, policy));
            if !same && path.as_os_str() != link.as_str() {
                return differs(
                    Code::XmlBackingDiffers,
                    format!(
                        "the volume's XML gives the backing image '{given}', and the header records '{link}'"
                    ),
                );
            }
            let word = recorded.format.as_deref().filter(|word| !word.is_empty())?;
            let (format, recorded) = ((*format)?, Format::from_recorded(word)?);
            if format.libvirt() == recorded.libvirt() {
                return None;
            }
            differs(
                Code::XmlFormatDiffers,
                format!(
                    "the volume's XML gives the backing image '{given}' as {format}, and the header records the format '{word}'"
                ),
            )
        }
        (Some((path, _)), None, _) => differs(
            Code::XmlBackingDiffers,
            format!(
                "the volume's XML gives the backing image '{}', and the header records none",
                path.display()
            ),
        ),
        (None, _, Some(link)) if volume.backing.is_none() => differs(
            Code::XmlBackingDiffers,
            format!("the volume's XML gives no backing image, and the header records '{link}'"),
        ),
        _ => None,
    }
}
