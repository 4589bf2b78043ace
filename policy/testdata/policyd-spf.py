# Runs policyd-spf itself, with dnspython's resolver at the address of the first
# two arguments; the third is its configuration.
import sys
import dns.resolver
from spf_engine.policyd_spf import main

r = dns.resolver.Resolver(configure=False)
r.nameservers = [sys.argv[1]]
r.port = int(sys.argv[2])
dns.resolver.default_resolver = r
sys.argv = ['policyd-spf', sys.argv[3]]
main()
