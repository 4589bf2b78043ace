# What the configuration calls of DirectAdmin's: nobody is over a limit.
sub auth_hit_limit_acl { return "no"; }
sub check_limits { return "yes"; }
sub save_virtual_user {
  open(my $f, "<", "/etc/virtual/" . Exim::expand_string('$domain') . "/passwd") or return "no";
  my $user = Exim::expand_string('$local_part');
  while (<$f>) { return "yes" if (split /:/)[0] eq $user; }
  return "no";
}
1;
