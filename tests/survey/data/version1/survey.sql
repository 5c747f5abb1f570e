BEGIN TRANSACTION;
CREATE TABLE attempts (
	id INTEGER NOT NULL, 
	job VARCHAR NOT NULL, 
	kind VARCHAR NOT NULL, 
	error VARCHAR, 
	started VARCHAR NOT NULL, 
	seconds DOUBLE PRECISION NOT NULL, 
	cost JSON NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "attempts" VALUES(1,'minimum/seed=0','minimum',NULL,'2026-11-22T03:34:32+00:00',7.99816899962024763226e-03,'{"type": "cost", "losses": 9, "gradients": 9, "hvps": 0, "passes": 9.0}');
INSERT INTO "attempts" VALUES(2,'characterise/m00','characterise','ArithmeticError: no eigenvalues today','2026-11-22T03:34:32+00:00',4.84005999896908178925e-03,'{"type": "cost", "losses": 0, "gradients": 0, "hvps": 0, "passes": 0.0}');
INSERT INTO "attempts" VALUES(3,'minimum/seed=1','minimum',NULL,'2026-11-22T03:34:32+00:00',1.23439749986573588103e-02,'{"type": "cost", "losses": 19, "gradients": 19, "hvps": 0, "passes": 19.0}');
INSERT INTO "attempts" VALUES(4,'characterise/m00','characterise',NULL,'2026-11-22T03:34:32+00:00',8.40367499949934426695e-03,'{"type": "cost", "losses": 1, "gradients": 1, "hvps": 6, "passes": 5.0}');
INSERT INTO "attempts" VALUES(5,'characterise/m01','characterise',NULL,'2026-11-22T03:34:32+00:00',8.17550100146036129444e-03,'{"type": "cost", "losses": 1, "gradients": 1, "hvps": 6, "passes": 5.0}');
INSERT INTO "attempts" VALUES(6,'connect/m00-m01','connect',NULL,'2026-11-22T03:34:32+00:00',7.32727939994219923391e-02,'{"type": "cost", "losses": 248, "gradients": 246, "hvps": 4, "passes": 31.0}');
CREATE TABLE measures (
	minimum VARCHAR NOT NULL, 
	sampling JSON, 
	metrics JSON NOT NULL, 
	held_out JSON NOT NULL, 
	eigenvalues JSON, 
	trace JSON, 
	cost JSON NOT NULL, 
	seconds DOUBLE PRECISION NOT NULL, 
	file VARCHAR, 
	checksum VARCHAR, 
	PRIMARY KEY (minimum)
);
INSERT INTO "measures" VALUES('m00',NULL,'{}','{}','{"values": [8.29636270172938, 7.849047551861466], "residuals": [9.40624205124199e-16, 9.51000114218834e-16], "lower": [8.296362701729349, 7.849047551861435], "upper": [8.296362701729413, 7.8490475518614975], "converged": [true, true]}','{"type": "estimate", "value": 16.145410253590846, "stderr": 0.0, "interval": [16.14541025359079, 16.145410253590903], "samples": 2, "cost": {"type": "cost", "losses": 0, "gradients": 0, "hvps": 2, "passes": 1.0}, "level": 0.95, "method": "exact diagonal", "seed": 277859162004791}','{"type": "cost", "losses": 1, "gradients": 1, "hvps": 6, "passes": 5.0}',8.40367499949934426695e-03,'m00.vectors.safetensors','733023bc7f26417a455fe231a4f5ee4c');
INSERT INTO "measures" VALUES('m01',NULL,'{}','{}','{"values": [8.296362701570164, 8.14907686183349], "residuals": [1.2625800199132238e-15, 1.2377673022159017e-15], "lower": [8.296362701570134, 8.14907686183346], "upper": [8.296362701570194, 8.149076861833521], "converged": [true, true]}','{"type": "estimate", "value": 16.445439563403653, "stderr": 0.0, "interval": [16.445439563403596, 16.44543956340371], "samples": 2, "cost": {"type": "cost", "losses": 0, "gradients": 0, "hvps": 2, "passes": 1.0}, "level": 0.95, "method": "exact diagonal", "seed": 132487372912309}','{"type": "cost", "losses": 1, "gradients": 1, "hvps": 6, "passes": 5.0}',8.17550100146036129444e-03,'m01.vectors.safetensors','9b6fbd040e110ebaa1d49f4868150301');
CREATE TABLE minima (
	id VARCHAR NOT NULL, 
	position INTEGER NOT NULL, 
	origin VARCHAR NOT NULL, 
	seed BIGINT, 
	loss DOUBLE PRECISION NOT NULL, 
	gradient_norm DOUBLE PRECISION NOT NULL, 
	converged BOOLEAN NOT NULL, 
	norm DOUBLE PRECISION NOT NULL, 
	cost JSON NOT NULL, 
	seconds DOUBLE PRECISION NOT NULL, 
	file VARCHAR NOT NULL, 
	checksum VARCHAR NOT NULL, 
	PRIMARY KEY (id), 
	UNIQUE (position)
);
INSERT INTO "minima" VALUES('m00',0,'descent',66430106323473,-5.07746156118576152938e-02,1.35244544846156829578e-11,1,1.41849128341790331475e+00,'{"type": "cost", "losses": 9, "gradients": 9, "hvps": 0, "passes": 9.0}',7.99816899962024763226e-03,'m00.theta.safetensors','65362757cbb57fecc032c4a65417e8cb');
INSERT INTO "minima" VALUES('m01',1,'descent',221780527711041,-1.50772662086154501936e-01,6.16804830593867e-11,1,1.42727711521518174642e+00,'{"type": "cost", "losses": 19, "gradients": 19, "hvps": 0, "passes": 19.0}',1.23439749986573588103e-02,'m01.theta.safetensors','8ff1dea785185d0344b006e6f882dafb');
CREATE TABLE paths (
	a VARCHAR NOT NULL, 
	b VARCHAR NOT NULL, 
	method VARCHAR NOT NULL, 
	times JSON NOT NULL, 
	losses JSON NOT NULL, 
	line_times JSON NOT NULL, 
	line_losses JSON NOT NULL, 
	maximum JSON NOT NULL, 
	barrier JSON NOT NULL, 
	line_maximum JSON NOT NULL, 
	normalised_length DOUBLE PRECISION NOT NULL, 
	converged BOOLEAN NOT NULL, 
	cost JSON NOT NULL, 
	seconds DOUBLE PRECISION NOT NULL, 
	file VARCHAR NOT NULL, 
	checksum VARCHAR NOT NULL, 
	PRIMARY KEY (a, b)
);
INSERT INTO "paths" VALUES('m00','m01','string','[0.0, 0.04019080194169175, 0.0803816038833835, 0.12057240582507525, 0.160763207766767, 0.20095400970845875, 0.2411448116501505, 0.2813356135918423, 0.321526415533534, 0.3617172174752258, 0.4019080194169175, 0.4420988213586093, 0.48228962330030106, 0.48645630352986874, 0.49062298375943636, 0.49478966398900404, 0.4989563442185717, 0.5407099822003574, 0.582463620182143, 0.6242172581639288, 0.6659708961457144, 0.7077245341275, 0.7494781721092859, 0.7912318100910716, 0.8329854480728571, 0.8747390860546429, 0.9164927240364286, 0.9582463620182143, 1.0]','[-0.050774615611857615, -0.02744268525633101, 0.03479804844394924, 0.12506627164838974, 0.23348236695283558, 0.35116841324278425, 0.47024818573581373, 0.5838471560016776, 0.6860924919486666, 0.7721130578294219, 0.8380394142385762, 0.8810038181127673, 0.8991402227306324, 0.8995563730968614, 0.8996951477835371, 0.8995563153236666, 0.8991397599653715, 0.8796876648978732, 0.8330852621665397, 0.7611409761920509, 0.6668300589749288, 0.5542945900957259, 0.42884347671460077, 0.29695245370981976, 0.16626408334288736, 0.04558775571962398, -0.055100311601757046, -0.12465707559611316, -0.1507726620861545]','[0.0, 0.0625, 0.125, 0.1875, 0.25, 0.3125, 0.375, 0.4375, 0.4689726786533978, 0.4845102552908707, 0.5, 0.5625, 0.625, 0.6875, 0.75, 0.8125, 0.875, 0.9375, 1.0]','[-0.050774615611857615, 0.0030211222017292455, 0.13628997108986968, 0.311247885238631, 0.4959688201941711, 0.6643847328627375, 0.7962855815106684, 0.8773193257643916, 0.8959550332137134, 0.8993965129651667, 0.8989919266104256, 0.8586673463953792, 0.7595675488259506, 0.6107724989689289, 0.42722016325119305, 0.2297065094597124, 0.044885506741546066, -0.09473087439615611, -0.1507726620861545]','{"type": "bound", "lower": 0.8996951477835371, "upper": 0.899695147807693, "lower_kind": "certified", "upper_kind": "estimated", "cost": {"type": "cost", "losses": 29, "gradients": 29, "hvps": 0, "passes": 2.0}, "method": "adaptive sampling of values and slopes, 29 samples"}','{"type": "bound", "lower": 0.0, "upper": 0.9504697634195506, "lower_kind": "certified", "upper_kind": "estimated", "cost": {"type": "cost", "losses": 248, "gradients": 246, "hvps": 4, "passes": 31.0}, "method": "0 because every path holds its ends; upper end: string"}','{"type": "bound", "lower": 0.8993965129651667, "upper": 0.9001533021607769, "lower_kind": "certified", "upper_kind": "estimated", "cost": {"type": "cost", "losses": 19, "gradients": 19, "hvps": 0, "passes": 4.0}, "method": "adaptive sampling of values and slopes, 19 samples"}',1.00000000078187367691e+00,1,'{"type": "cost", "losses": 248, "gradients": 246, "hvps": 4, "passes": 31.0}',7.32727939994219923391e-02,'m00-m01.path.safetensors','a70e60de01d203721e2e83a0cc81d60e');
CREATE TABLE survey (
	id INTEGER NOT NULL, 
	created VARCHAR NOT NULL, 
	config JSON NOT NULL, 
	identity JSON NOT NULL, 
	provenance JSON NOT NULL, 
	goal INTEGER NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "survey" VALUES(1,'2026-11-22T03:34:32+00:00','{"seed": 11, "minima": 4, "threads": 1, "epochs": 30, "batch_size": 64, "lr": 0.01, "tolerance": 1e-09, "max_gradients": 500, "eigenvalues": 5, "trace_samples": 32, "images": 13, "path_gradients": 400, "all_pairs": 8, "round_size": 8, "extra_pairs": 16}','{"landscape": {"kind": "FunctionLandscape", "dim": 2, "dtype": "float64", "label": "wells", "probe": 1.994702851048685}, "held_out": null}','{"landscape": {"kind": "FunctionLandscape", "dim": 2, "dtype": "float64", "label": "wells", "probe": 1.994702851048685}, "held_out": null, "software": {"thalweg": "0.1.0", "torch": "2.13.0+cpu", "numpy": "2.4.6", "scipy": "1.17.1", "python": "3.11.7", "platform": "Linux-6.18.44-fc-v669-x86_64-with-glibc2.36"}}',2);
CREATE INDEX ix_attempts_job ON attempts (job);
COMMIT;
PRAGMA user_version = 1;
