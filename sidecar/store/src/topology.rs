//! Which server owns the keys: slots of a cluster, and what its nodes and Sentinels say.

use redis::Value;

use crate::{
    config::Address,
    error::{StoreError, StoreFault},
};

/// Slots of a cluster.
const SLOTS: u16 = 16384;

/// The slot of keys with this hash tag.
pub fn hash_slot(tag: &str) -> u16 {
    // CRC-16/XMODEM.
    let mut crc: u16 = 0;
    for byte in tag.bytes() {
        crc ^= u16::from(byte) << 8;
        for _ in 0..8 {
            let over = crc & 0x8000 != 0;
            crc <<= 1;
            if over {
                crc ^= 0x1021;
            }
        }
    }
    crc % SLOTS
}

/// One error of many, when nobody knew the master.
pub(crate) fn no_master_error(what: &str, mut errors: Vec<StoreError>) -> StoreError {
    // What somebody answered tells more than that others are not there.
    errors.sort_by_key(|error| error.fault.is_absence());
    let count = errors.len();
    let mut errors = errors.into_iter();
    match errors.next() {
        Some(first) if count == 1 => first,
        Some(first) => {
            let text = format!("no {what} of {count} knows the master. One says: {}", first.message);
            StoreError::new(first.fault, text)
        }
        None => StoreError::new(StoreFault::BadConfig, format!("there is no {what} to ask; write one into the store's url")),
    }
}

/// The owner of a slot in the answer to CLUSTER SLOTS, and all nodes in it.
pub(crate) fn owner_of_slot(slots: &Value, slot: u16, asked: &Address) -> (Option<Address>, Vec<Address>) {
    let (mut owner, mut nodes) = (None, Vec::new());
    for range in list(slots) {
        let [Value::Int(first), Value::Int(last), servers @ ..] = list(range) else { continue };
        let mut servers = servers.iter().map(|server| node(server, asked));
        // The master, then its replicas.
        let master = servers.next().flatten();
        if (*first..=*last).contains(&i64::from(slot)) {
            owner.clone_from(&master);
        }
        nodes.extend(master.into_iter().chain(servers.flatten()));
    }
    (owner, nodes)
}

fn node(server: &Value, asked: &Address) -> Option<Address> {
    let [host, Value::Int(port), more @ ..] = list(server) else { return None };
    let port = u16::try_from(*port).ok().filter(|port| *port != 0)?;
    let host = match text(host) {
        None | Some("") => asked.host.clone(),
        // A cluster of names, and this node has none: its address is among what else is known of it.
        Some("?") => more.get(1).and_then(|known| list(known).chunks_exact(2).find_map(|pair| ip(pair)))?.to_owned(),
        Some(host) => host.to_owned(),
    };
    Some(Address { host, port })
}

fn ip(pair: &[Value]) -> Option<&str> {
    let [key, value] = pair else { return None };
    text(value).filter(|_| text(key) == Some("ip"))
}

fn list(value: &Value) -> &[Value] {
    if let Value::Array(items) = value { items } else { &[] }
}

fn text(value: &Value) -> Option<&str> {
    match value {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok(),
        Value::SimpleString(text) => Some(text),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_of_redis() {
        // redis-cli CLUSTER KEYSLOT
        for (tag, expected) in [("123456789", 12739), ("", 0), ("foo", 12182), ("bar", 5061), ("hello", 866), ("somekey", 11058)]
        {
            assert_eq!(hash_slot(tag), expected, "{tag}");
        }
    }

    fn bulk(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    #[test]
    fn the_owner_of_a_slot_is_read_from_the_cluster() {
        let asked = Address { host: "seed".to_owned(), port: 1 };
        let server = |host: Value, port| Value::Array(vec![host, Value::Int(port), bulk("id")]);
        let named = Value::Array(vec![bulk("?"), Value::Int(5), bulk("id"), Value::Array(vec![bulk("ip"), bulk("10.0.0.5")])]);
        let range =
            |first, last, servers: Vec<Value>| Value::Array([vec![Value::Int(first), Value::Int(last)], servers].concat());
        let slots = Value::Array(vec![
            range(0, 9, vec![server(bulk("a"), 2), server(bulk("b"), 3)]),
            range(10, 19, vec![server(bulk(""), 4)]),
            range(20, 29, vec![named]),
            range(30, 39, vec![server(Value::Nil, 6)]),
            range(40, 49, vec![server(bulk("c"), 0)]),
            Value::Nil,
        ]);
        let rows = [(0, "a:2"), (9, "a:2"), (10, "seed:4"), (29, "10.0.0.5:5"), (30, "seed:6"), (40, "none"), (50, "none")];
        for (slot, expected) in rows {
            let (owner, nodes) = owner_of_slot(&slots, slot, &asked);
            assert_eq!(owner.map_or("none".to_owned(), |owner| owner.to_string()), expected, "{slot}");
            assert_eq!(nodes.len(), 5);
        }
        assert_eq!(owner_of_slot(&Value::Okay, 0, &asked), (None, Vec::new()));
    }
}
