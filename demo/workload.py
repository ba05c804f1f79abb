#!/usr/bin/python3
"""Three branches of a shop at work, and a ledger of what they did.

Every transaction counts what it expects to be captured (asking the tables what a cascade will reach), then reads the
keys of its own changes from the outbox before it ends: of a commit they go into committed.keys, of a rollback into
rolled-back.keys. Each branch has its own products, customers and sales, so that nobody else changes what it counted.
"""

import argparse
import datetime
import pathlib
import random
import sys
import threading
from collections import Counter

import psycopg

AWKWARD = ["", "O'Brien \"the\" \\ 3rd", "línea\nnueva\ttab", "日本語 🛒", None, "NULL", "{}", "x" * 3000]
MOVEMENTS = "stock movements"


class Branch:
    def __init__(self, dsn, number, seed):
        self.db = psycopg.connect(dsn, application_name=f"branch {number}")
        self.number = number
        self.random = random.Random(f"{seed}/{number}")
        self.expected = Counter()
        self.committed, self.rolled_back = [], []

    def work(self, transactions):
        self.transaction(self.open)
        for _ in range(transactions):
            self.transaction(self.some_acts, rolls_back=self.random.random() < 0.07)

    # One transaction

    def transaction(self, work, rolls_back=False):
        self.expected.clear()
        start = self.value("SELECT last_value FROM sync_outbox_id_seq")
        work()
        captured = self.db.execute(
            "SELECT table_name, op, dedup_key FROM sync_outbox"
            " WHERE target_id = 1 AND priority IN ('HIGH', 'NORMAL', 'LOW') AND id > %s AND txid = pg_current_xact_id()",
            [start]).fetchall()
        seen = Counter((table, op) for table, op, _ in captured)
        if seen != +self.expected:
            raise AssertionError(f"expected {+self.expected}, captured {seen}")
        keys = [str(key) for _, _, key in captured]
        if rolls_back:
            self.db.rollback()
            self.rolled_back += keys
        else:
            self.db.commit()
            self.committed += keys

    def some_acts(self):
        self.act()
        if self.random.random() < 0.2:
            self.act()
        if self.random.random() < 0.1:
            self.nothing_of_this_remains()
            self.act()

    def act(self):
        actions = {self.sell: 40, self.pay: 15, self.correct_a_line: 10, self.price: 8, self.new_product: 4,
                   self.new_customer: 6, self.greet: 6, self.cancel_sale: 5, self.lose_customer: 2,
                   self.rename_product: 2, self.renumber_sale: 3, self.count_stock: 2, self.move_away: 0.1}
        (action,) = self.random.choices(list(actions), actions.values())
        action()

    def nothing_of_this_remains(self):
        before = self.expected.copy()
        self.db.execute("SAVEPOINT s")
        self.act()
        self.act()
        self.db.execute("ROLLBACK TO s")
        self.expected = before

    # What happens in a shop

    def open(self):
        """Once, if it is not open yet."""
        if not self.value("SELECT count(*) FROM branches WHERE name = %s", [f"Branch nº {self.number}"]):
            self.write("branches", "INSERT", "INSERT INTO branches VALUES (%s, %s, current_date, tstzrange('2024-03-31 00:30+00', NULL), %s)",
                       [f"S{self.number}", f"Branch nº {self.number}", '{"city": "Málaga", "floors": [0, 1]}'])
            for _ in range(10):
                self.new_product()
                self.new_customer()

    def sell(self):
        customer = None
        if self.random.random() < 0.7:
            customer = self.one("SELECT id FROM customers WHERE email LIKE %s ORDER BY random() LIMIT 1")
        ago = datetime.timedelta(seconds=self.random.randrange(10**6))
        sold_at = datetime.datetime.now(datetime.timezone.utc) - ago
        sale = self.value("INSERT INTO sales (branch, customer, sold_at, note) VALUES (%s, %s, %s, %s) RETURNING id",
                          [self.code(), customer, sold_at, self.random.choice(AWKWARD)])
        self.expected["sales", "INSERT"] += 1
        for line in range(self.random.randint(1, 4)):
            sku = self.product()
            self.write("sale_lines", "INSERT", "INSERT INTO sale_lines SELECT %s, %s, sku, %s, price FROM products WHERE sku = %s",
                       [sale, line + 1, self.random.choice([1, 2, 0.125, 1000]), sku])
            self.write(MOVEMENTS, "INSERT", 'INSERT INTO "stock movements" (branch, sku, delta, reason) VALUES (%s, %s, %s, %s)',
                       [self.code(), sku, -line, self.random.choice(AWKWARD)])

    def pay(self):
        if sale := self.sale():
            paid = self.value("SELECT paid FROM sales WHERE id = %s", [sale])
            # Paid already: then nothing changes, and nothing is captured.
            self.write("sales", "UPDATE", "UPDATE sales SET paid = true WHERE id = %s", [sale], times=0 if paid else 1)
            if customer := self.value("SELECT customer FROM sales WHERE id = %s", [sale]):
                for points in (1, 2):  # twice: two changes with two keys
                    self.write("customers", "UPDATE", "UPDATE customers SET points = points + %s WHERE id = %s",
                               [points, customer])

    def correct_a_line(self):
        if sale := self.sale():
            line = self.value("SELECT min(line) FROM sale_lines WHERE sale = %s", [sale])
            if line and self.random.random() < 0.5:
                self.write("sale_lines", "DELETE", "DELETE FROM sale_lines WHERE sale = %s AND line = %s", [sale, line])
            elif line:
                self.write("sale_lines", "UPDATE", "UPDATE sale_lines SET qty = qty + 0.5 WHERE sale = %s AND line = %s",
                           [sale, line])

    def price(self):
        self.write("products", "UPDATE", "UPDATE products SET price = price + 0.01, tags = tags || %s::text[], weight = %s, "
                   "picture = %s, details = jsonb_set(details, '{price}', to_jsonb(price)) WHERE sku = %s",
                   [self.random.choice([None, ["new"], ["a,b", None, '"']]),
                    self.random.choice([0.1, float("nan"), float("inf"), None]),
                    self.random.randbytes(self.random.randrange(200)), self.own_product()])

    def new_product(self):
        sku = f"S{self.number}-{self.random.randrange(16**10):010x}"
        self.write("products", "INSERT", "INSERT INTO products (sku, name, kind, price, tags, weight, details) VALUES (%s, %s, %s, %s, %s, %s, %s)",
                   [sku, f"Käse {sku}", self.random.choice(["food", "drink", "non-food"]),
                    self.random.randrange(10**5) / 100, [], None, '{"nested": {"a": [1, 2.50, null, "é"]}}'])

    def new_customer(self):
        birthday = self.random.choice(["1980-02-29", "0044-03-15 BC", "infinity", None])
        self.write("customers", "INSERT", 'INSERT INTO customers ("Full Name", email, birthday, "Größe (cm)") VALUES (%s, %s, %s, %s)',
                   [self.random.choice([name for name in AWKWARD if name is not None]),
                    f"{self.random.randrange(10**12)}@s{self.number}.example", birthday, self.random.uniform(140, 210)])

    def greet(self):
        """An upsert that finds its row."""
        if customer := self.one("SELECT id FROM customers WHERE email LIKE %s ORDER BY random() LIMIT 1"):
            self.write("customers", "UPDATE", 'INSERT INTO customers (id, "Full Name") VALUES (%s, \'x\') ON CONFLICT (id) DO UPDATE '
                       "SET points = customers.points + 10", [customer])

    def cancel_sale(self):
        if sale := self.sale():
            self.cascade("sale_lines", "DELETE", "SELECT count(*) FROM sale_lines WHERE sale = %s", [sale])
            self.write("sales", "DELETE", "DELETE FROM sales WHERE id = %s", [sale])

    def lose_customer(self):
        if customer := self.one("SELECT id FROM customers WHERE email LIKE %s ORDER BY random() LIMIT 1"):
            self.cascade("sales", "UPDATE", "SELECT count(*) FROM sales WHERE customer = %s", [customer])
            self.write("customers", "DELETE", "DELETE FROM customers WHERE id = %s", [customer])

    def rename_product(self):
        sku = self.own_product()
        self.cascade("sale_lines", "UPDATE", "SELECT count(*) FROM sale_lines WHERE sku = %s", [sku])
        self.cascade(MOVEMENTS, "UPDATE", 'SELECT count(*) FROM "stock movements" WHERE sku = %s', [sku])
        self.write("products", "UPDATE", "UPDATE products SET sku = %s WHERE sku = %s",
                   [f"S{self.number}-{self.random.randrange(16**10):010x}", sku])

    def renumber_sale(self):
        if sale := self.sale():
            self.cascade("sale_lines", "UPDATE", "SELECT count(*) FROM sale_lines WHERE sale = %s", [sale])
            self.write("sales", "UPDATE", "UPDATE sales SET id = id + 1000000 * %s WHERE id = %s",
                       [self.random.randint(1, 1000), sale])

    def count_stock(self):
        rows = [(self.code(), self.product(), n) for n in range(20)]
        with self.db.cursor().copy('COPY "stock movements" (branch, sku, delta) FROM STDIN') as copy:
            for row in rows:
                copy.write_row(row)
        self.expected[MOVEMENTS, "INSERT"] += len(rows)

    def move_away(self):
        """The branch gets another code, which every sale and movement of it follows."""
        code = self.code()
        self.cascade("sales", "UPDATE", "SELECT count(*) FROM sales WHERE branch = %s", [code])
        self.cascade(MOVEMENTS, "UPDATE", 'SELECT count(*) FROM "stock movements" WHERE branch = %s', [code])
        self.write("branches", "UPDATE", "UPDATE branches SET code = %s WHERE code = %s",
                   [f"S{self.number}/{self.random.randrange(10**6)}", code])

    # Short ways

    def write(self, table, op, query, parameters, times=1):
        self.db.execute(query, parameters)
        self.expected[table, op] += times

    def cascade(self, table, op, count, parameters):
        self.expected[table, op] += self.value(count, parameters)

    def value(self, query, parameters=None):
        row = self.db.execute(query, parameters).fetchone()
        return row and row[0]

    def one(self, query):
        return self.value(query, [f"%@s{self.number}.example"])

    def code(self):
        return self.value("SELECT code FROM branches WHERE name = %s", [f"Branch nº {self.number}"])

    def sale(self):
        return self.value("SELECT id FROM sales WHERE branch = %s ORDER BY random() LIMIT 1", [self.code()])

    def own_product(self):
        return self.value("SELECT sku FROM products WHERE sku LIKE %s ORDER BY random() LIMIT 1", [f"S{self.number}-%"])

    def product(self):
        """One of the branch's own, or of the old stock, which keeps its numbers."""
        if self.random.random() < 0.3:
            return f"OLD-{self.random.randint(1, 300)}"
        return self.own_product()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dsn", required=True)
    parser.add_argument("--ledger", type=pathlib.Path, required=True, help="directory of the ledger")
    parser.add_argument("--transactions", type=int, required=True, help="of each branch")
    parser.add_argument("--seed", default="1")
    arguments = parser.parse_args()

    branches = [Branch(arguments.dsn, number, arguments.seed) for number in (1, 2, 3)]
    failed = []

    def work(branch):
        try:
            branch.work(arguments.transactions)
        except Exception as error:  # the other branches go on; the ledger must be written
            failed.append(error)

    threads = [threading.Thread(target=work, args=[branch]) for branch in branches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    committed = [key for branch in branches for key in branch.committed]
    rolled_back = [key for branch in branches for key in branch.rolled_back]
    for name, keys in [("committed.keys", committed), ("rolled-back.keys", rolled_back)]:
        with open(arguments.ledger / name, "a", encoding="ascii") as ledger:
            ledger.writelines(f"{key}\n" for key in keys)
    for error in failed:
        print(f"the workload failed: {error!r}", file=sys.stderr)
    print(f"{3 * arguments.transactions} transactions: {len(committed)} changes committed,"
          f" {len(rolled_back)} rolled back")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
