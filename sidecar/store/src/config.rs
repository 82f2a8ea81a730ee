//! Where the store is and how to use it.
use toolweir_crds::stream::SharedStore;
/// Stub.
#[derive(Clone, Debug)]
pub struct Config;
impl TryFrom<&SharedStore> for Config {
    type Error = crate::connect::StoreError;
    fn try_from(store: &SharedStore) -> Result<Self, Self::Error> {
        let ok = store.url.starts_with("redis");
        let message = "is no url".to_owned();
        if ok { Ok(Self) } else { Err(crate::connect::StoreError { fault: crate::connect::Fault::Refused, message }) }
    }
}
