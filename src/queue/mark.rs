//! Pure. What must be known of a record that cannot be read: its key, its twin, its order and its place.
//!
//! Values are sealed, so with a lost key nothing of a record is left, and a repeat under its key would be sent: twice,
//! once the right key is given again. So each record has a mark, in the *key* of an empty value, which is not sealed.
//! It holds only digests and pseudonyms. They are not keyed: who has the disk can confirm a guess of a key, a target or
//! a body, but read none.

use super::dedupe;
use super::record::{Blob, CredentialRef, Digest, Reason, Record};
use super::state::{Progress, State};
use crate::flexport::routes::WriteClass;
use crate::ids::{OwnerId, PartitionId, WriteId};
use jiff::Timestamp;

/// The layout of its bytes.
const VERSION: u8 = 1;

/// A record, as far as it is known without reading it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    /// Its ticket.
    pub write_id: WriteId,
    /// Whether equal ones are its twins.
    pub creates: bool,
    /// Its place.
    pub seq: u64,
    /// Whose data it touches.
    pub partition: PartitionId,
    /// Who may read its ticket.
    pub owner: OwnerId,
    /// Digest of its key in its scope.
    pub key: Digest,
    /// See [`Record::twin`].
    pub twin: Digest,
    /// See [`Record::fingerprint`].
    pub fingerprint: Digest,
    /// Digest of its order.
    pub order: Digest,
}

// === impl Mark ===

impl Mark {
    /// Of a record.
    pub(super) fn of(record: &Record) -> Self {
        Self {
            write_id: record.write_id,
            creates: record.class.creates(),
            seq: record.seq,
            partition: record.partition,
            owner: record.owner,
            key: dedupe::key_digest(record.partition, record.owner, &record.key),
            twin: record.twin,
            fingerprint: record.fingerprint,
            order: dedupe::order_digest(record.partition, &record.order),
        }
    }

    /// Its bytes; the ticket first.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(16 + 2 + 8 + 16 + 16 + 4 * 32);
        bytes.extend_from_slice(self.write_id.as_bytes());
        bytes.push(VERSION);
        bytes.push(u8::from(self.creates));
        bytes.extend_from_slice(&self.seq.to_be_bytes());
        bytes.extend_from_slice(&self.partition.0);
        bytes.extend_from_slice(&self.owner.0);
        for digest in [&self.key, &self.twin, &self.fingerprint, &self.order] {
            bytes.extend_from_slice(&digest.0);
        }
        bytes
    }

    /// From its bytes.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (write_id, bytes) = bytes.split_first_chunk::<16>()?;
        let ([VERSION, creates], bytes) = bytes.split_first_chunk::<2>()? else { return None };
        let (seq, bytes) = bytes.split_first_chunk::<8>()?;
        let (partition, bytes) = bytes.split_first_chunk::<16>()?;
        let (owner, bytes) = bytes.split_first_chunk::<16>()?;
        let (digests, rest) = bytes.as_chunks::<32>();
        let &[key, twin, fingerprint, order] = digests else { return None };
        rest.is_empty().then(|| Self {
            write_id: WriteId::from_bytes(*write_id),
            creates: *creates != 0,
            seq: u64::from_be_bytes(*seq),
            partition: PartitionId(*partition),
            owner: OwnerId(*owner),
            key: Digest(key),
            twin: Digest(twin),
            fingerprint: Digest(fingerprint),
            order: Digest(order),
        })
    }

    /// The ticket that stands for it: dead, and before all that is younger in its order unless `is_released`.
    pub(super) fn stand_in(&self, is_released: bool, now: Timestamp) -> Record {
        let placed = i64::try_from(self.seq).ok().and_then(|at| Timestamp::from_microsecond(at).ok());
        let accepted_at = placed.map_or(now, |at| at.min(now));
        Record {
            write_id: self.write_id,
            seq: self.seq,
            order: format!("unread/{}", self.write_id).into(),
            partition: self.partition,
            owner: self.owner,
            caller: None,
            credential: CredentialRef::Passed,
            method: String::new(),
            target: String::new(),
            fields: Vec::new(),
            route: "unread".into(),
            group: "unread".into(),
            class: if self.creates { WriteClass::X } else { WriteClass::R },
            key: String::new(),
            key_is_callers: false,
            fingerprint: self.fingerprint,
            twin: self.twin,
            body: Blob::default(),
            is_ticket: true,
            progress: Progress {
                state: State::Dead,
                reason: Some(Reason::Undecryptable),
                maybe_applied: true,
                blocks: !is_released,
                settled_at: Some(now),
                ..Progress::new()
            },
            accepted_at,
            expires_at: accepted_at,
            next_at: None,
            keep_until: None,
            answer: None,
            audited: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_read_as_it_was_written() {
        let mark = Mark {
            write_id: WriteId::random(),
            creates: true,
            seq: 7,
            partition: PartitionId([1; 16]),
            owner: OwnerId([2; 16]),
            key: Digest([3; 32]),
            twin: Digest([4; 32]),
            fingerprint: Digest([5; 32]),
            order: Digest([6; 32]),
        };
        let bytes = mark.encode();
        assert_eq!(Mark::decode(&bytes), Some(mark.clone()));
        assert_eq!(Mark::decode(&bytes[..bytes.len() - 1]), None);
        let mut longer = bytes.clone();
        longer.push(0);
        assert_eq!(Mark::decode(&longer), None);
        let mut newer = bytes;
        newer[16] = 2;
        assert_eq!(Mark::decode(&newer), None);
    }
}
