# Asks pyspf, the library of policyd-spf, at the DNS server of the arguments:
# a line "ip TAB helo TAB sender" in, "result TAB explanation" out. pyspf uses
# dnspython where it is installed; py3dns takes SERVFAIL for "no such record".
import sys
import dns.resolver
import spf

r = dns.resolver.Resolver(configure=False)
r.nameservers = [sys.argv[1]]
r.port = int(sys.argv[2])
dns.resolver.default_resolver = r
assert spf.DNSLookup is spf.DNSLookup_dnspython
for line in sys.stdin:
    ip, helo, sender = line.rstrip('\n').split('\t')
    try:
        result, _, why = spf.query(i=ip, s=sender, h=helo, querytime=20).check()
    except Exception as e:
        result, why = 'exception', repr(e)
    print(result + '\t' + why.replace('\n', ' '), flush=True)
