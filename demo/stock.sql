-- What the store had before anybody thought of a hub.
INSERT INTO products (sku, name, kind, price, tags, weight, picture, details)
SELECT format('OLD-%s', n), format('Old stock no. %s', n), (enum_range(NULL::product_kind))[n % 3 + 1], n * 0.37,
       CASE WHEN n % 2 = 0 THEN ARRAY['old', NULL, 'shelf ' || n] END, n / 3.0, decode(md5(n::text), 'hex'),
       jsonb_build_object('from', 'inventory', 'n', n)
  FROM generate_series(1, 300) n;
INSERT INTO customers ("Full Name", email, birthday, points, "Größe (cm)")
SELECT format('Customer Nº %s', n), CASE WHEN n % 3 > 0 THEN format('c%s@example.org', n) END, date '1950-01-01' + n * 17, n, 150 + n / 7.0
  FROM generate_series(1, 500) n;
