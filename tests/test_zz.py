import time
def test_zz(live, receiver):
    live.aim(receiver)
    live.run("CREATE TABLE sales (id int PRIMARY KEY, qty int, note text)")
    live.attach("sales")
    live.run("INSERT INTO sales VALUES (1)")
    for i in range(6):
        time.sleep(0.5)
        print(live.rows("SELECT pid, backend_type, state, wait_event, query FROM pg_stat_activity WHERE backend_type LIKE 'sync%'"), len(receiver.requests))
        print(live.rows("SELECT * FROM sync_outbox_target"))
        print(live.rows("SELECT * FROM sync_outbox_target_state"))
    print(live.rows("SELECT id, status, txid::text FROM sync_outbox"))
    print(open(live.server.log.path).read()[-3000:])
    assert 0
