//! Whether a request is meant for this node and comes from no other site's page. There is no password, so a
//! page that an operator opens must not become an operator. Browsers say which page asks (`Origin`,
//! `Sec-Fetch-Site`), except when a page has made its own name resolve to this node's address: then they take
//! both for one site, and only `Host` shows the name. A request by address is not of that kind.
//!
//! What monitors ask for is answered whatever name they use.

use std::collections::BTreeSet;

use axum::http::{HeaderMap, Method, Request, StatusCode, Version, header, uri::Authority};

use super::api::Problem;

/// What is told to everybody who asks: it is read by probes and monitors, under any name that leads here.
const OPEN: &[&str] = &["/healthz", "/readyz", "/metrics"];

/// The problem type when the name in a request is not one of this node's.
const HOST: &str = "urn:kvorum:problem:host";

/// The problem type when a page of another site asks.
const ORIGIN: &str = "urn:kvorum:problem:origin";

/// The names of one node.
#[derive(Clone, Debug, Default)]
pub struct Names {
    /// Those that its addresses have.
    own: BTreeSet<String>,
    /// Those that the operator lists: there may be a proxy in front, whose pages are this node's.
    listed: BTreeSet<String>,
    /// Whether any other is allowed too.
    any: bool,
}

impl Names {
    /// `own` are hosts of its addresses, `listed` those of the option `http-hosts`.
    pub fn new(own: impl IntoIterator<Item = String>, listed: &[String]) -> Names {
        let any = listed.iter().any(|host| host == "*");
        let set = |hosts: &mut dyn Iterator<Item = String>| hosts.map(|host| plain(&host)).collect();
        Names { own: set(&mut own.into_iter()), listed: set(&mut listed.iter().cloned()), any }
    }

    fn includes(&self, host: &str) -> bool {
        let is_here = host == "localhost" || host.ends_with(".localhost");
        let is_address = host.parse::<std::net::IpAddr>().is_ok();
        self.any || is_here || is_address || self.own.contains(host) || self.listed.contains(host)
    }

    /// Why not to answer this request.
    pub(super) fn objection<B>(&self, request: &Request<B>) -> Option<Problem> {
        let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
        if is_read && OPEN.contains(&request.uri().path()) {
            return None;
        }
        let host = match host_of(request) {
            Ok(host) => host,
            Err(why) => return Some(Problem::new(StatusCode::BAD_REQUEST, why)),
        };
        if let Some(host) = &host
            && !self.includes(&plain(host.host()))
        {
            let why = format!(
                "{:?} is not a name of this node: ask by its address, or add the name to http-hosts (--http-hosts, \
                 KVORUM_HTTP_HOSTS) on this node",
                host.host()
            );
            return Some(Problem::of(HOST, StatusCode::FORBIDDEN, why));
        }
        self.is_foreign(request.headers(), host.as_ref()).then(|| {
            let why = "requests of other sites' pages are refused; if the page comes from a proxy in front of this node, \
                       add the proxy's name to http-hosts";
            Problem::of(ORIGIN, StatusCode::FORBIDDEN, why)
        })
    }

    /// Whether a page asks that does not come from this node itself, or from a proxy in front of it.
    fn is_foreign(&self, headers: &HeaderMap, host: Option<&Authority>) -> bool {
        let mut origins = headers.get_all(header::ORIGIN).iter().peekable();
        if origins.peek().is_none() {
            // Without an Origin it may still be a link, an image or a frame of such a page.
            let sites = headers.get_all("sec-fetch-site");
            return sites.iter().any(|site| site != "same-origin" && site != "none");
        }
        let is_own = |origin: &str| {
            let authority =
                origin.split_once("://").and_then(|(_, authority)| authority.parse::<Authority>().ok());
            authority.is_some_and(|authority| {
                Some(&authority) == host || self.listed.contains(&plain(authority.host()))
            })
        };
        !origins.all(|origin| origin.to_str().is_ok_and(is_own))
    }
}

/// The name by which a request asks. None in an old form of the protocol, which no browser speaks.
fn host_of<B>(request: &Request<B>) -> Result<Option<Authority>, &'static str> {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    // A request with a whole URL is for the host in that.
    let absolute = request.uri().authority().cloned();
    match (hosts.next(), hosts.next()) {
        (None, _) if absolute.is_none() && request.version() >= Version::HTTP_11 => {
            Err("the header Host is missing")
        }
        (None, _) => Ok(absolute),
        (Some(_), Some(_)) => Err("there are several headers Host"),
        (Some(host), None) => {
            let host: Option<Authority> = host.to_str().ok().and_then(|host| host.parse().ok());
            match host.filter(|host| !host.as_str().contains('@')) {
                None => Err("the header Host names no host"),
                Some(host) => Ok(Some(absolute.unwrap_or(host))),
            }
        }
    }
}

/// A host as it is compared: in lower case, without brackets and without the dot that ends a full name.
fn plain(host: &str) -> String {
    host.trim_matches(['[', ']']).trim_end_matches('.').to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use axum::http::{Request, Version};

    use super::Names;

    fn names() -> Names {
        let listed = ["kv.example.com".to_owned(), "Proxy".to_owned()];
        Names::new(["node1".to_owned(), "kv-0.kv.svc".to_owned()], &listed)
    }

    fn status(names: &Names, line: &str, headers: &[(&str, &str)]) -> u16 {
        let (method, uri) = line.split_once(' ').unwrap();
        let request = Request::builder().method(method).uri(uri);
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        names.objection(&request.body(()).unwrap()).map_or(200, |problem| problem.status)
    }

    #[test]
    fn a_node_answers_to_its_names_and_to_addresses() {
        for host in [
            "127.0.0.1:8379",
            "10.1.2.3",
            "[::1]:8379",
            "localhost:8379",
            "a.localhost",
            "node1:8379",
            "NODE1.",
            "kv-0.kv.svc:8379",
            "kv.example.com",
            "proxy:443",
        ] {
            assert_eq!(status(&names(), "POST /v1/checkpoint", &[("host", host)]), 200, "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:8379",
            "node1.evil.example",
            "localhost.evil.example",
            "kv",
            "7f.1",
        ] {
            for line in
                ["POST /v1/checkpoint", "GET /v1/feed", "GET /v1/cluster", "DELETE /v1/cluster/members/1"]
            {
                assert_eq!(status(&names(), line, &[("host", host)]), 403, "{line} {host}");
            }
            for line in ["GET /metrics", "HEAD /healthz", "GET /readyz?x=1"] {
                assert_eq!(status(&names(), line, &[("host", host)]), 200, "{line} {host}");
            }
        }
        for wrong in ["", "a b", "user@127.0.0.1", "127.0.0.1/x"] {
            assert_eq!(status(&names(), "GET /v1/cluster", &[("host", wrong)]), 400, "{wrong}");
        }
        let two = [("host", "127.0.0.1"), ("host", "evil.example")];
        assert_eq!(status(&names(), "GET /v1/cluster", &two), 400);
        assert_eq!(status(&names(), "GET /v1/cluster", &[]), 400);
        assert_eq!(status(&names(), "GET http://evil.example/v1/cluster", &[("host", "node1")]), 403);
        let old = Request::builder().version(Version::HTTP_10).uri("/v1/cluster").body(()).unwrap();
        assert!(names().objection(&old).is_none());
        let any = Names::new([], &["*".to_owned()]);
        assert_eq!(status(&any, "POST /v1/checkpoint", &[("host", "evil.example")]), 200);
    }

    #[test]
    fn pages_of_other_sites_are_refused() {
        let asked = |origin: &str, host: &str| {
            let headers = [("origin", origin), ("host", host)];
            let all = ["POST /v1/checkpoint", "GET /v1/feed"].map(|line| status(&names(), line, &headers));
            assert_eq!(all[0], all[1]);
            all[0]
        };
        assert_eq!(asked("http://node1:8379", "node1:8379"), 200);
        assert_eq!(asked("http://10.0.0.1:8379", "10.0.0.1:8379"), 200);
        assert_eq!(
            asked("https://kv.example.com", "10.0.0.1:8379"),
            200,
            "a proxy that passes on another Host"
        );
        for origin in [
            "null",
            "",
            "http://evil.example",
            "http://localhost:3000",
            "http://10.0.0.2:8379",
            "http://node1",
            "node1:8379",
        ] {
            assert_eq!(asked(origin, "node1:8379"), 403, "{origin}");
        }
        assert_eq!(
            asked("http://evil.example", "evil.example"),
            403,
            "it has its own name resolve to this node"
        );
        let any = Names::new([], &["*".to_owned()]);
        let headers = [("origin", "http://evil.example"), ("host", "other.example")];
        assert_eq!(status(&any, "POST /v1/checkpoint", &headers), 403, "any name, and still no other site");
        for (site, expected) in
            [("cross-site", 403), ("same-site", 403), ("same-origin", 200), ("none", 200), ("what", 403)]
        {
            let headers = [("host", "node1:8379"), ("sec-fetch-site", site)];
            for line in ["POST /v1/checkpoint", "GET /v1/feed"] {
                assert_eq!(status(&names(), line, &headers), expected, "{line} {site}");
            }
        }
        let own = [("host", "node1"), ("origin", "http://node1"), ("sec-fetch-site", "same-origin")];
        assert_eq!(status(&names(), "POST /v1/checkpoint", &own), 200);
        let listed = [("host", "node1"), ("origin", "http://proxy"), ("sec-fetch-site", "same-site")];
        assert_eq!(status(&names(), "POST /v1/checkpoint", &listed), 200);
    }
}
