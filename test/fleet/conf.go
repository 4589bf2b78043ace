package main

const patroniYML = `scope: understudy
name: db%[1]d
restapi: {listen: "%[2]s:8008", connect_address: "%[2]s:8008"}
etcd: {hosts: "10.99.0.1:2379,10.99.0.2:2379,10.99.0.3:2379"}
bootstrap:
  dcs:
    ttl: 20
    loop_wait: 2
    retry_timeout: 5
    maximum_lag_on_failover: 1073741824
    synchronous_mode: true
    synchronous_mode_strict: true
    postgresql:
      use_pg_rewind: true
      parameters: {max_connections: 60, shared_buffers: 32MB, wal_log_hints: "on", max_wal_size: 256MB}
  initdb: [{encoding: UTF8}, data-checksums]
  pg_hba:
  - host replication replicator 10.99.0.0/24 scram-sha-256
  - host all all 10.99.0.0/24 scram-sha-256
  - local all all trust
postgresql:
  listen: "%[2]s:5432"
  connect_address: "%[2]s:5432"
  data_dir: %[3]s/pg/data
  bin_dir: %[3]s/bin
  basebackup: [{checkpoint: fast}]
  pgpass: %[3]s/pg/pgpass
  parameters: {unix_socket_directories: "%[3]s/pg"}
  authentication:
    replication: {username: replicator, password: secret}
    superuser: {username: postgres, password: secret}
    rewind: {username: rewinder, password: secret}
`

const understudyTOML = `hostname = "mx%[1]d.example.org"
state_dir = "%[3]s/state"
[smtp]
listen = ["%[2]s:25"]
max_connections_per_client = 200
[policy]
file = "policy.toml"
[metrics]
listen = "%[2]s:9187"
[primary]
address = "%[4]s:25"
max_connections = 9
probe_interval = "1s"
while_up = "accept"
[queue]
store = "postgres"
dsn = "postgres://understudy@10.99.0.1,10.99.0.2,10.99.0.3/understudy?sslmode=disable"
dsn_password = "password"
adopt_after = "20s"
min_free = "1B"
`

const mainCF = `compatibility_level = 3.6
queue_directory = %[1]s/queue
data_directory = %[1]s/data
command_directory = /usr/sbin
daemon_directory = /usr/lib/postfix/sbin
mail_owner = postfix
setgid_group = postdrop
myhostname = primary.example.org
mydestination =
inet_interfaces = 10.99.0.254
inet_protocols = ipv4
mynetworks = 127.0.0.0/8
maillog_file = %[1]s/mail.log
maillog_file_prefixes = /
virtual_mailbox_domains = example.org
virtual_mailbox_maps = static:all/
virtual_mailbox_base = %[1]s/mail
virtual_mailbox_limit = 0
virtual_uid_maps = static:65534
virtual_gid_maps = static:65534
message_size_limit = 20480000
smtpd_client_connection_count_limit = 0
`
