//! Structs of Thrift's compact protocol, as Parquet lays them out: walked, not kept.
//!
//! In: bytes and the layout of a struct. Out: its numbers and the lengths of its lists, as they come. Never: a list of more
//! elements than there are bytes, structs within structs without end, a field that is not of the type that it should have.
//! Source: as the module above.

use Type::{Binary, Bool, Byte, Double, Int, List, Struct};

/// The type of a field. The library reads a field that it knows as what it should be, whatever the bytes say that it is.
#[derive(Debug, Clone, Copy)]
pub(super) enum Type {
    Bool,
    Byte,
    /// Of 16, 32 or 64 bits: all are written alike.
    Int,
    Double,
    Binary,
    List(&'static Type),
    Struct(Layout),
}

/// Fields that are known, by id; others are skipped.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    of: Part,
    fields: &'static [(i16, Type)],
}

/// What somebody asks about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    File,
    Element,
    Page,
    DataPage,
    Other,
}

const fn layout(fields: &'static [(i16, Type)]) -> Layout {
    Layout { of: Part::Other, fields }
}

const ANY: Layout = layout(&[]);
pub(super) const FILE: Layout = Layout {
    of: Part::File,
    fields: &[
        (1, Int),
        (2, List(&Struct(ELEMENT))),
        (3, Int),
        (4, List(&Struct(ROW_GROUP))),
        (5, List(&Struct(PAIR))),
        (6, Binary),
        (7, List(&Struct(layout(&[(1, Struct(ANY)), (2, Struct(ANY))])))),
        (8, Struct(ANY)),
        (9, Binary),
    ],
};
const ELEMENT: Layout = Layout {
    of: Part::Element,
    fields: &[
        (1, Int),
        (2, Int),
        (3, Int),
        (4, Binary),
        (5, Int),
        (6, Int),
        (7, Int),
        (8, Int),
        (9, Int),
        (10, Struct(LOGICAL_TYPE)),
    ],
};
const LOGICAL_TYPE: Layout = layout(&[
    (1, Struct(ANY)),
    (2, Struct(ANY)),
    (3, Struct(ANY)),
    (4, Struct(ANY)),
    (5, Struct(layout(&[(1, Int), (2, Int)]))),
    (6, Struct(ANY)),
    (7, Struct(TIME)),
    (8, Struct(TIME)),
    (10, Struct(layout(&[(1, Byte), (2, Bool)]))),
    (11, Struct(ANY)),
    (12, Struct(ANY)),
    (13, Struct(ANY)),
    (14, Struct(ANY)),
    (15, Struct(ANY)),
    (16, Struct(layout(&[(1, Byte)]))),
    (17, Struct(layout(&[(1, Binary)]))),
    (18, Struct(layout(&[(1, Binary), (2, Int)]))),
]);
const TIME: Layout = layout(&[(1, Bool), (2, Struct(layout(&[(1, Struct(ANY)), (2, Struct(ANY)), (3, Struct(ANY))])))]);
const ROW_GROUP: Layout = layout(&[
    (1, List(&Struct(COLUMN))),
    (2, Int),
    (3, Int),
    (4, List(&Struct(layout(&[(1, Int), (2, Bool), (3, Bool)])))),
    (5, Int),
    (6, Int),
    (7, Int),
]);
const COLUMN: Layout = layout(&[
    (1, Binary),
    (2, Int),
    (3, Struct(COLUMN_META)),
    (4, Int),
    (5, Int),
    (6, Int),
    (7, Int),
    (8, Struct(ANY)),
    (9, Binary),
]);
const COLUMN_META: Layout = layout(&[
    (1, Int),
    (2, List(&Int)),
    (3, List(&Binary)),
    (4, Int),
    (5, Int),
    (6, Int),
    (7, Int),
    (8, List(&Struct(PAIR))),
    (9, Int),
    (10, Int),
    (11, Int),
    (12, Struct(STATISTICS)),
    (13, List(&Struct(layout(&[(1, Int), (2, Int), (3, Int)])))),
    (14, Int),
    (15, Int),
    (16, Struct(layout(&[(1, Int), (2, List(&Int)), (3, List(&Int))]))),
    (17, Struct(layout(&[(1, Struct(BOX)), (2, List(&Int))]))),
]);
const BOX: Layout =
    layout(&[(1, Double), (2, Double), (3, Double), (4, Double), (5, Double), (6, Double), (7, Double), (8, Double)]);
const STATISTICS: Layout =
    layout(&[(1, Binary), (2, Binary), (3, Int), (4, Int), (5, Binary), (6, Binary), (7, Bool), (8, Bool), (9, Int)]);
const PAIR: Layout = layout(&[(1, Binary), (2, Binary)]);
pub(super) const OFFSET_INDEX: Layout =
    layout(&[(1, List(&Struct(layout(&[(1, Int), (2, Int), (3, Int)])))), (2, List(&Int))]);
pub(super) const PAGE: Layout = Layout {
    of: Part::Page,
    fields: &[
        (1, Int),
        (2, Int),
        (3, Int),
        (4, Int),
        (5, Struct(DATA_PAGE)),
        (6, Struct(ANY)),
        (7, Struct(layout(&[(1, Int), (2, Int), (3, Bool)]))),
        (8, Struct(DATA_PAGE_2)),
    ],
};
const DATA_PAGE: Layout =
    Layout { of: Part::DataPage, fields: &[(1, Int), (2, Int), (3, Int), (4, Int), (5, Struct(STATISTICS))] };
const DATA_PAGE_2: Layout = Layout {
    of: Part::DataPage,
    fields: &[(1, Int), (2, Int), (3, Int), (4, Int), (5, Int), (6, Int), (7, Bool), (8, Struct(STATISTICS))],
};

/// Why reading goes no further.
pub(super) enum Fault {
    /// The bytes end, or are no Thrift.
    End,
    Claim(String),
}

fn claim<T>(text: String) -> Result<T, Fault> {
    Err(Fault::Claim(text))
}

/// Stands for the id of a field where a struct begins.
pub(super) const START: i16 = i16::MIN;

/// Takes the struct, the id of its field, and the field's value, which is the number of elements of a list.
pub(super) type See<'s> = dyn FnMut(Part, i16, i64) + 's;

pub(super) struct Thrift<'a> {
    pub(super) bytes: &'a [u8],
}

impl Thrift<'_> {
    fn byte(&mut self) -> Result<u8, Fault> {
        let (&first, rest) = self.bytes.split_first().ok_or(Fault::End)?;
        self.bytes = rest;
        Ok(first)
    }

    fn varint(&mut self) -> Result<u64, Fault> {
        let mut value = 0;
        for shift in (0u32..).step_by(7) {
            let byte = self.byte()?;
            // As the library: bits beyond the 64th wrap.
            value |= u64::from(byte & 0x7f).wrapping_shl(shift);
            if byte & 0x80 == 0 {
                break;
            }
        }
        Ok(value)
    }

    fn zigzag(&mut self) -> Result<i64, Fault> {
        let value = self.varint()?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    fn advance(&mut self, n: u64) -> Result<(), Fault> {
        let rest = usize::try_from(n).ok().and_then(|n| self.bytes.get(n..));
        self.bytes = rest.ok_or(Fault::End)?;
        Ok(())
    }

    /// Reads a struct; `see` learns of its numbers and lists.
    pub(super) fn fields(&mut self, layout: Layout, depth: usize, see: &mut See<'_>) -> Result<(), Fault> {
        let Some(depth) = depth.checked_sub(1) else { return claim("structs within structs".to_owned()) };
        see(layout.of, START, 0);
        let mut id = 0i16;
        loop {
            let head = self.byte()?;
            let (delta, wire) = (head >> 4, head & 15);
            if wire == 0 {
                return Ok(());
            }
            id = match delta {
                0 => self.zigzag()? as i16,
                // Nobody adds up the ids of what is skipped.
                _ if layout.fields.is_empty() => 0,
                _ => id.checked_add(i16::from(delta)).ok_or(Fault::End)?,
            };
            match layout.fields.iter().find(|(known, _)| *known == id) {
                Some((_, field)) if !field.is_written_as(wire) => {
                    return claim(format!("a field {id} of type {wire}, wanted {field:?}"));
                }
                Some((_, Bool)) => {}
                Some((_, Int)) => see(layout.of, id, self.zigzag()?),
                Some((_, List(element))) => {
                    let (wire, n) = self.list()?;
                    see(layout.of, id, n as i64);
                    if n > 0 && !element.is_written_as(wire) {
                        return claim(format!("elements of type {wire} in field {id}, wanted {element:?}"));
                    }
                    (0..n).try_for_each(|_| self.value(element, depth, see))?;
                }
                Some((_, field)) => self.value(field, depth, see)?,
                None => self.skip(wire, depth)?,
            }
        }
    }

    fn value(&mut self, wanted: &Type, depth: usize, see: &mut See<'_>) -> Result<(), Fault> {
        match wanted {
            Bool | Byte => self.advance(1),
            Int => self.varint().map(|_| ()),
            Double => self.advance(8),
            Binary => self.skip(8, depth),
            Struct(layout) => self.fields(*layout, depth, see),
            List(_) => claim("lists of lists".to_owned()),
        }
    }

    /// Type and number of the elements of a list, each of which takes a byte at least.
    fn list(&mut self) -> Result<(u8, u64), Fault> {
        let head = self.byte()?;
        let n = if head >> 4 == 15 { self.varint()? } else { u64::from(head >> 4) };
        if n > self.bytes.len() as u64 {
            return claim(format!("a list of {n} elements in {} bytes", self.bytes.len()));
        }
        // The library takes no byte for a boolean of a list, writers take one. Nothing that is read here has such lists.
        if n > 0 && matches!(head & 15, 1 | 2) {
            return claim("a list of booleans".to_owned());
        }
        Ok((head & 15, n))
    }

    fn skip(&mut self, wire: u8, depth: usize) -> Result<(), Fault> {
        match wire {
            // A boolean of a struct is its type.
            1 | 2 => Ok(()),
            3 => self.advance(1),
            4..=6 => self.varint().map(|_| ()),
            7 => self.advance(8),
            8 => {
                let n_bytes = self.varint()?;
                self.advance(n_bytes)
            }
            9 | 10 => {
                let (element, n) = self.list()?;
                let Some(depth) = depth.checked_sub(1) else { return claim("lists within lists".to_owned()) };
                (0..n).try_for_each(|_| self.skip(element, depth))
            }
            11 => claim("a map".to_owned()),
            12 => self.fields(ANY, depth, &mut |_, _, _| {}),
            13 => self.advance(16),
            _ => Err(Fault::End),
        }
    }
}

impl Type {
    fn is_written_as(self, wire: u8) -> bool {
        match self {
            Bool => matches!(wire, 1 | 2),
            Byte => wire == 3,
            Int => matches!(wire, 4..=6),
            Double => wire == 7,
            Binary => wire == 8,
            List(_) => wire == 9,
            Struct(_) => wire == 12,
        }
    }
}
