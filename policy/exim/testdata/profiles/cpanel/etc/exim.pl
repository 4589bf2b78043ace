# What the configuration calls of cPanel's: nobody's mail is suspended.
sub check_outgoing_mail_suspended { return "no"; }
sub get_outgoing_mail_suspended_message { return ""; }
1;
