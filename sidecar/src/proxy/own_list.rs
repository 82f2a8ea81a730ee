//! A list that the sidecar asks a server for by itself, since the decision on a client's call needs it: with that client's session,
//! headers and credentials, over Streamable HTTP and HTTP+SSE.

use std::{sync::atomic::Ordering, time::Instant};

use bytes::Bytes;
use toolweir_engine::Permit;

use super::{
    cancel::CallName, pages::OwnPages, post::Requester, request_guard::RequestGuard, state::Proxy, stream_lists::PostContext,
};
use crate::{
    mcp::{own_list, request::Request},
    own_lists::SoughtTool,
    pending::PendingRequest,
};

impl Proxy {
    /// Lists the tools of a server where the decision on a call depends on a tool of which nothing is known. The call waits for that,
    /// and is then held to the policies of that moment. Returns true where its client has cancelled it meanwhile.
    pub(super) async fn list_for_call(
        &self,
        message: &Request<'_>,
        sought: SoughtTool<'_>,
        (client, pending): (&Requester<'_>, Option<&PendingRequest<'_>>),
        call: &Bytes,
        request: &mut RequestGuard<'_>,
    ) -> bool {
        let before = Instant::now();
        let until = before + self.state.own_lists.wait();
        let Ok(at) = request.at_server() else { return false };
        // Where it goes nowhere, the call would not either: that says why.
        let Ok(url) = client.endpoint(&at) else { return false };
        // It holds no places yet, but can be named.
        let named = message.id.filter(|_| pending.is_none()).and_then(|id| CallName::of(sought.server, client.headers, id));
        let cancellable = named.map(|name| self.state.calls.add(name, Permit::default()));
        let headers = own_list::headers_for_call(client.headers, message.is_modern());
        let posted = PostContext::new(&headers, &url, &at.server);
        let mut pages = OwnPages::new(self.clone(), posted, client.legacy);
        let first = |id: &str| own_list::for_call(call, id);
        self.state.own_lists.look(&self.state.governor, sought, first, &mut pages, until).await;
        request.waited_since(before);
        request.update_policies();
        request.find_server(sought.server);
        let is_cancelled = cancellable.is_some_and(|(_, cancelled)| cancelled.load(Ordering::Relaxed));
        is_cancelled || pending.is_some_and(|pending| !pending.is_under_way())
    }
}
