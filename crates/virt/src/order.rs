//! The order that libvirt gives a domain's disks: those of a bus stand together, by their names.

use crate::model::{Disk, Document};

impl Document {
    /// The places of the disks in the document, in libvirt's order. Guests are checked, numbered and started in it.
    pub fn order(&self) -> Vec<usize> {
        let mut order: Vec<(usize, &Disk)> = Vec::new();
        for (place, disk) in self.disks.iter().enumerate() {
            let same = |other: &Disk| other.bus == disk.bus;
            let after = order
                .iter()
                .position(|(_, other)| same(other) && number(other) > number(disk));
            let behind = order.iter().rposition(|(_, other)| same(other));
            let at = after.or(behind.map(|last| last + 1)).unwrap_or(order.len());
            order.insert(at, (place, disk));
        }
        order.into_iter().map(|(place, _)| place).collect()
    }
}

/// The number in a target's name: that of `sda` is 0, that of `sdaa` 26. None where it is not such a name.
fn number(disk: &Disk) -> Option<u64> {
    let name = disk.target.as_deref()?;
    let prefixes = ["fd", "hd", "vd", "sd", "xvd", "ubd"];
    let letters = prefixes.iter().find_map(|prefix| name.strip_prefix(prefix))?;
    let mut number: u64 = 0;
    for letter in letters.bytes().take_while(u8::is_ascii_lowercase) {
        number = number
            .checked_mul(26)?
            .checked_add(u64::from(letter - b'a') + 1)?;
    }
    number.checked_sub(1)
}

/// The bus a disk is on, also where libvirt takes it from the name.
pub(crate) fn bus(disk: &Disk) -> Option<&str> {
    let by_name = |name: &str| match name.get(..2)? {
        "fd" => Some("fdc"),
        "hd" => Some("ide"),
        "sd" => Some("scsi"),
        "vd" => Some("virtio"),
        "xv" => Some("xen"),
        "ub" => Some("uml"),
        _ => None,
    };
    let said = disk.bus.as_deref().filter(|bus| *bus != "none");
    said.or_else(|| by_name(disk.target.as_deref()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_of_a_bus_stand_together_by_their_names() {
        let disk = |target: &str, bus: &str| {
            format!("<disk device='cdrom'><target dev='{target}' bus='{bus}'/></disk>")
        };
        let disks = [
            ("vdb", "virtio"),
            ("sdc", "sata"),
            ("vdaa", "virtio"),
            ("vda", "virtio"),
            ("sda", "scsi"),
            ("sdb", "sata"),
        ];
        let text: String = disks.iter().map(|(target, bus)| disk(target, bus)).collect();
        let document = Document::parse(format!("<domain><devices>{text}</devices></domain>")).unwrap();
        assert_eq!(document.order(), [3, 0, 2, 5, 1, 4]);
    }
}
