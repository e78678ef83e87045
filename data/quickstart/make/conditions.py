"""The 40 codes of the quickstart notes, as conditions of the grammar (`grammar.py`).

Every code is billable in ICD-10-CM FY2026. What a note says is enough for the code, but neither the
code, nor its title, nor a plain synonym stands in it: `taboo` lists what must not, and `generate.py`
checks it. `bar` keeps out bystanders that coding rules would combine with the condition (high blood
pressure with heart failure is I11.0, with kidney disease I12.9).
"""

from grammar import Condition


def sides(right, left):
    """Codes of a condition that has a side."""
    return {"right": right, "left": left}


STOOLS = "[watery|loose|foul watery|greenish loose] stools [up to|about|at least] <6-12> times a day"
COURSE = (
    "finished [ten|seven|five] days of [clindamycin|ciprofloxacin|amoxicillin-clavulanate|cefuroxime] "
    "[<2-3> weeks ago|for a tooth abscess two weeks ago|for a sinus infection last month]"
)
TOXIN = "stool [toxin B gene|toxin assay|GDH and toxin test] positive"
BELLY = "[belly|abdomen] [soft|a little distended] with [diffuse|lower] tenderness and no guarding"
HEADACHE = "[throbbing|pounding] headache on one side"
ATTACKS = "attacks of <6-24> hours [two|three|four] times a month, [light and noise|light and stairs] make it worse"
MOOD = "[low mood|feeling empty|sadness] and [no drive|loss of interest|poor sleep]"
COPING = (
    "[still goes to work but gets half as much done|keeps the household going with great effort|"
    "manages the job but has dropped all friends]"
)
MOOD_SEEN = "PHQ-9 score <15-18>, [tearful|slowed|looks down], [no voices or fixed ideas|thinking in order], no wish to die"
MEDIAN = "numb thumb, index and middle finger of the {side} hand"
NIGHTS = "[wakes at night and shakes the hand|has to hang the hand out of bed at night|drops cups and cannot button]"
EARACHE = "[pain in the {side} ear|{side} ear pain and crying at night|tugging at the {side} ear]"
COLD_FIRST = "[runny nose for a week before|a cold came first|stuffy nose since the weekend]"
WINDED = "[getting winded at night|shortness of breath lying flat|breathlessness on one flight of stairs]"
PILLOWS = "[sleeps on three pillows|wakes up gasping|gained <4-8> kg in two weeks], never had this before"
WET = "crackles [at both bases|up to mid lung], [neck veins full|third heart sound], [pitting at both shins|both ankles pit]"
LEG_SWELLS = "[swelling of the whole {side} leg|heavy swollen {side} thigh|{side} thigh and calf swelling]"
STILLNESS = "[a flight of <9-14> hours last week|knee surgery ten days ago|was in bed for a week with the flu|two days in a bus last week]"
RED_LEG = "[hot red {side} lower leg|spreading redness of the {side} shin|warm painful {side} calf skin]"
ENTRY = "[scratched the shin in the garden|cracked skin between the toes|a small cut from a thorn|insect bite scratched open] last week"
TOE = "[sudden severe pain in the {side} big toe|red hot {side} big toe|{side} forefoot pain that came overnight]"
FEAST = "[after a wedding with beer and steak|after a weekend of shellfish and beer|started a water pill last month], cannot bear the bed sheet"
FALL = "[fell on the outstretched {side} hand on ice|tripped over a curb onto the {side} palm|fell off a bicycle onto the {side} hand]"
CREATININE = "[follow-up of blood results|check of a raised creatinine|talk about lab results]"
FILTER_STORY = "[took ibuprofen daily for years|born with a single kidney|several infections of the urinary tract in childhood], feels well"


def ear_intact(right, left):
    return Condition(
        sides(right, left), EARACHE, age=(2, 9), lasting="<2-4> days", vitals="fever",
        tell=[COLD_FIRST, "[nothing has drained|pillow stays dry|no fluid from the ear]"],
        show=["{side} drum [bulging and red|red with pus behind it|bulging, yellow, does not move], membrane whole",
              "[{other} drum grey|{other} ear normal|{other} side clear]"],
        may=["[woke up screaming|better for an hour with acetaminophen]"],
        has="fever", taboo="otitis suppurative rupture ruptured perforat media")  # fmt: skip


def ear_open(right, left):
    return Condition(
        sides(right, left), EARACHE, age=(2, 9), lasting="<2-4> days", vitals="fever",
        tell=[COLD_FIRST, "[pain eased when yellow fluid ran onto the pillow|fluid drips from the ear since last night|woke up with pus on the pillow]"],
        show=["pus in the {side} canal, [pinhole in the drum|small opening in the drum that pulses]",
              "[{other} drum grey|{other} ear normal|{other} side clear]"],
        may=["[woke up screaming|better for an hour with acetaminophen]"],
        has="fever", taboo="otitis suppurative rupture ruptured perforat media")  # fmt: skip


def kidney(code, rate, creatinine, before):
    return Condition(
        {"": code}, CREATININE, age=(45, 82), lasting="<4-9> months",
        tell=[FILTER_STORY, f"the value [four|five|six] months ago was {before}"],
        show=[f"eGFR {rate}[, creatinine {creatinine}|]", "urine albumin ratio <40-220>, both kidneys small on ultrasound"],
        has="kidney urine legs", bar="htn dm pain family", taboo="chronic disease stage ckd")  # fmt: skip


def wrist_new(right, left):
    return Condition(
        sides(right, left), "[wrist pain after a fall|a bent painful wrist|swollen wrist]", age=(40, 82), lasting="<2-9> hours",
        tell=[FALL, "[cannot turn the hand|put ice on it|came straight from the street]"],
        show=["{side} wrist [shaped like a dinner fork|tilted backward and swollen], skin closed",
              "film: [broken lower end of the bone with the fragment tilted backward|distal break, fragment tipped to the back of the hand]"],
        may=["the {other} hand [is not hurt|is fine]"],
        has="trauma swelling", bar="wrist", taboo="colles fracture radius initial encounter")  # fmt: skip


TARGETS = [
    Condition({"": "A04.72"}, STOOLS, lasting="<2-6> days", vitals="dry",
              tell=[COURSE, "[never had this before|first time with such trouble|bowels were always normal before]"],
              show=[TOXIN, BELLY], may=["[cramps before each stool|low appetite|up all night]"],
              has="diarrhea abdomen fever crp", taboo="enterocolitis clostrid difficile c.diff recurr colitis"),
    Condition({"": "A04.71"}, STOOLS, lasting="<2-6> days", vitals="dry",
              tell=["[the same trouble <4-7> weeks ago cleared with vancomycin by mouth|second bout this season, the first cleared with fidaxomicin|"
                    "was well for <2-4> weeks after ten days of oral vancomycin, now it is back]",
                    "[it began after clindamycin in spring|the first bout came after ciprofloxacin|no new antibiotic since]"],
              show=[TOXIN, BELLY], may=["[cramps before each stool|low appetite|up all night]"],
              has="diarrhea abdomen fever crp", taboo="enterocolitis clostrid difficile c.diff recurr colitis"),
    Condition({"": "B02.9"}, "[burning blisters|a stinging rash|painful blisters] on [the flank|one side of the chest|the back]", lasting="<2-5> days",
              tell=["[the skin hurt two days before anything showed|even the shirt hurts|a band of burning came first]"],
              show=["grouped vesicles on a red base [in a band from spine to navel|in a stripe under the shoulder blade], stop at the midline",
                    "[no lesions on the face|eyes and ears not involved]"],
              may=["had chickenpox as a child"], age=(48, 84), has="rash skin", taboo="zoster shingles herpes"),
    Condition({"": "B02.30"}, "[burning blisters on the forehead|a stinging rash on the brow] and [a red eye|a sore watering eye]", lasting="<2-5> days",
              tell=["[the scalp tingled two days before|even combing hurts|light hurts the eye]"],
              show=["grouped vesicles on [brow, lid and tip of the nose|forehead and side of the nose], stop at the midline",
                    "[cornea hazy with branching stain|lid swollen, stain shows small branching spots|cells in the front chamber]"],
              may=["had chickenpox as a child"], age=(48, 84), has="rash skin blurred vision", taboo="zoster shingles herpes ocular"),
    Condition({"": "D50.0"}, "[tiredness|feeling worn out|getting winded on stairs|craving for ice]", lasting="<2-8> months", sex="f", age=(24, 50),
              tell=["[soaks a pad every hour on period days|black stools on and off with daily naproxen|periods last ten days with large clots]"],
              show=["hemoglobin <7.2-9.8>, MCV <64-76>[, ferritin <3-9>|]", "[inner lids pale|nails brittle and spoon shaped|skin pale]"],
              may=["hair falls out"], has="blood skin dyspnea", bar="none pain", taboo="iron deficiency anemia loss"),
    Condition({"": "D51.0"}, "[tiredness|feeling worn out|unsteady walking|sore tongue]", lasting="<2-8> months", age=(46, 82),
              tell=["[tingling in both feet|burning tongue|stumbles in the dark], eats meat and eggs"],
              show=["hemoglobin <7.2-10.4>, MCV <108-124>, cobalamin <60-130>", "[antibodies to parietal cells positive|antibodies against the gastric binding protein positive]",
                    "[tongue smooth and red|vibration not felt at the ankles]"],
              has="blood neuro numbness throat dyspnea", bar="dm gerd thyroid", taboo="vitamin b12 deficiency anemia intrinsic pernicious"),
    Condition({"": "E11.65"}, "[thirst and passing water all night|blurry sight and thirst|tiredness and constant thirst]", lasting="<2-6> weeks", vitals="dry", age=(40, 78),
              tell=["takes [metformin|metformin and glipizide|metformin and sitagliptin] [but ran out last month|but skips most doses|and stopped it before a trip]"],
              show=["[fingerstick|glucose] <290-440>, A1c <9.4-13.2>", "[no ketones in urine|ketones negative, bicarbonate normal]"],
              may=["[eats sweets daily|lost <2-5> kg]"], has="weight loss blurred vision glucose urine dizziness", bar="dm none",
              taboo="diabet mellitus hyperglyc sugar"),
    Condition({"": "E11.649"}, "[a spell of shaking and sweating|a trembling confused spell|sudden sweating and hunger]", lasting="<2-4> hours", age=(46, 82),
              tell=["takes [glipizide|glimepiride|metformin and glyburide] and [skipped lunch|ate little today|worked in the garden without eating]",
                    "[better after juice|cleared with candy|never passed out]"],
              show=["[fingerstick|glucose] <36-56> on arrival, <110-160> after gel", "[alert and oriented now|awake throughout, speech normal]"],
              has="glucose dizziness palpitations", bar="dm none", taboo="diabet mellitus hypoglyc coma sugar"),
    Condition({"": "E11.42"}, "[burning feet|numb feet|pins and needles in both feet]", lasting="<4-18> months", age=(48, 82),
              tell=["on [metformin|metformin and empagliflozin|metformin and glipizide] for <8-20> years", "[worse at night in bed|feels like walking on cotton|socks feel wrinkled]"],
              show=["monofilament not felt at <5-9> of 10 points on both soles", "[ankle jerks absent, A1c <6.9-8.8>|vibration lost to the ankles, A1c <6.9-8.8>]"],
              has="numbness glucose neuro legs", bar="dm none", taboo="diabet mellitus neuropath sugar"),
    Condition({"": "E05.00"}, "[racing heart and sweating|weight loss and trembling hands|feeling hot and shaky]", lasting="<2-6> months", sex="fffm", age=(22, 55), vitals="fast",
              tell=["[eats more than ever but lost <5-9> kg|cannot stand warm rooms|sleeps four hours and feels wired]"],
              show=["TSH under 0.01, free T4 [high|three times normal]", "gland in the neck evenly enlarged [with a bruit|and soft]", "[eyes look wide open|upper lids pulled up|fine tremor of the fingers]"],
              has="weight loss palpitations tsh neck heart", bar="thyroid", taboo="thyrotox goiter graves hyperthyroid thyroid"),
    Condition({"": "E03.9"}, "[tiredness and feeling cold|weight gain and dry hair|slow bowels and tiredness]", lasting="<3-9> months", sex="fffm", age=(26, 72), vitals="slow",
              tell=["[wears a sweater in summer|gained <5-9> kg without eating more|hair comes out in the brush]"],
              show=["TSH <18.0-64.0>, free T4 low", "[dry cool skin|ankle jerks relax slowly|puffy lids]"],
              may=["[voice got deeper|periods got heavier|forgets names]"], has="tsh skin neuro weight loss", bar="thyroid", taboo="thyroid"),
    Condition({"": "F32.1"}, MOOD, lasting="<4-12> weeks", age=(22, 66), has="weight loss",
              tell=[COPING, "[never felt like this before|no such time earlier in life|was always cheerful until now]"], show=[MOOD_SEEN],
              may=["[wakes at four|cannot follow a film|lost appetite]"], bar="mood none", taboo="depress single episode moderate"),
    Condition({"": "F33.1"}, MOOD, lasting="<4-12> weeks", age=(28, 66), has="weight loss",
              tell=[COPING, "[two such times before, at <19-24> and <25-27>, both lifted with sertraline|the third time in ten years, well in between|"
                    "same state <3-6> years ago for half a year, then well on citalopram]"], show=[MOOD_SEEN],
              may=["[wakes at four|cannot follow a film|lost appetite]"], bar="mood none", taboo="depress recurr episode moderate"),
    Condition({"": "G43.009"}, HEADACHE, lasting="<4-10> hours", sex="ffm", age=(18, 48),
              tell=[ATTACKS, "[sight stays normal throughout|it starts without any warning|nothing announces it]"],
              show=["[fundi and fields normal|eye movements full, no weakness]"], may=["[vomits once|sumatriptan helps within the hour|lies in a dark room]"],
              has="headache vomiting blurred vision neuro", taboo="migrain aura intractable"),
    Condition({"": "G43.109"}, HEADACHE, lasting="<4-10> hours", sex="ffm", age=(18, 48),
              tell=[ATTACKS, "[zigzag lines for twenty minutes come first|a shimmering blind spot grows for half an hour, then the pain|one hand tingles for <10-30> minutes before the pain]"],
              show=["[fundi and fields normal|eye movements full, no weakness]"], may=["[vomits once|sumatriptan helps within the hour|lies in a dark room]"],
              has="headache vomiting blurred vision numbness neuro", taboo="migrain aura intractable"),
    Condition(sides("G56.01", "G56.02"), MEDIAN, lasting="<3-14> months", age=(32, 70), tell=[NIGHTS, "[the {other} hand feels normal|nothing on the {other} side]"],
              show=["[tapping|bending] the {side} wrist brings on tingling", "[slow median conduction at the {side} wrist|weak {side} thumb lift|{side} thumb pad flatter than the {other}]"],
              has="numbness neuro", bar="dm thyroid wrist", taboo="carpal tunnel syndrome"),
    ear_intact("H66.001", "H66.002"),
    ear_open("H66.011", "H66.012"),
    Condition({"": "I48.0"}, "[fluttering in the chest|a racing uneven heartbeat|sudden thumping in the chest]", lasting="<2-9> hours", vitals="fast", age=(46, 80),
              tell=["[third spell this year, each stopped by itself within a day|spells come and go, the longest lasted ten hours|two spells in spring ended on their own]"],
              show=["ECG on arrival [uneven without P waves|narrow, uneven, no P waves]", "[back in sinus rhythm two hours later|sinus rhythm by evening without treatment]"],
              has="palpitations heart dizziness chest", bar="clot thyroid", taboo="fibrillation paroxysm afib"),
    Condition({"": "I50.21"}, WINDED, lasting="<4-12> days", vitals="breathless", age=(52, 82), tell=[PILLOWS],
              show=[WET, "echo: ejection fraction <18-34>%, [left ventricle wide|wall moves poorly]"],
              has="dyspnea cough swelling lungs heart legs chest neck", bar="htn", taboo="failure systolic congestive diastolic"),
    Condition({"": "I50.31"}, WINDED, lasting="<4-12> days", vitals="breathless", age=(58, 84), tell=[PILLOWS],
              show=[WET, "echo: ejection fraction <56-68>%, [thick stiff walls|left ventricle fills late]"],
              has="dyspnea cough swelling lungs heart legs chest neck", bar="htn", taboo="failure systolic congestive diastolic"),
    Condition(sides("I82.411", "I82.412"), LEG_SWELLS, lasting="<2-6> days", age=(28, 76), tell=[STILLNESS],
              show=["{side} thigh <4-7> cm larger than the {other}", "duplex: [common vessel in the {side} groin does not compress|no flow in the large {side} groin vessel]"],
              may=["[the {other} leg is fine|worse on standing]"], has="swelling legs", bar="clot knee hip", taboo="embol thromb femoral vein dvt clot"),
    Condition({"": "J44.1"}, "[more cough and breathlessness|worse breathlessness and thick phlegm]", lasting="<3-7> days", vitals="breathless", age=(56, 80),
              tell=["[<40-60> pack-years|smoked a pack a day for <30-45> years]", "[phlegm turned green|brings up twice as much phlegm], uses tiotropium"],
              show=["[long breath out with wheeze|quiet lungs, pursed lips]", "[FEV1 <34-48>% with low ratio|film: flat diaphragms, no infiltrate]"],
              has="cough dyspnea lungs chest", bar="lung none smoke", taboo="copd obstructive pulmonary exacerbat chronic emphysema"),
    Condition({"": "J45.41"}, "[wheeze and tight chest|cough at night and wheeze]", lasting="<2-5> days", vitals="breathless", age=(16, 48),
              tell=["[since childhood|since age six], uses budesonide-formoterol daily", "[symptoms every day and one night a week even before this|needs the blue inhaler daily at the best of times]"],
              show=["wheeze on both sides, peak flow <48-62>% of best", "[better after two nebulizers|speaks in phrases]"],
              may=["[a friend has a cat|pollen season|a cold came first]"], has="cough dyspnea lungs chest", bar="lung none", taboo="asthma exacerbat persistent moderate"),
    Condition({"": "K80.00"}, "[pain under the right ribs|right upper belly pain after fried food]", lasting="<2-4> days", vitals="fever", sex="ffm", age=(32, 72),
              tell=["[it goes to the right shoulder blade|vomited twice, pain does not let go|earlier brief attacks after fatty meals]"],
              show=["breath stops on pressing under the right ribs", "ultrasound: [shadowing echoes in a thick wall|thick wall, fluid rim, mobile shadows], [ducts not wide|main duct 4 mm]"],
              has="abdomen vomiting fever liver crp", taboo="gallbladder calculus cholecyst gallstone obstruction"),
    Condition({"": "K85.20"}, "[upper belly pain through to the back|severe belly pain and vomiting]", lasting="<2-4> days", vitals="fast", age=(30, 62), sex="mmf",
              tell=["[a bottle of vodka a day|ten beers a day|half a liter of whisky daily] [for years|since the divorce|until yesterday]"],
              show=["lipase <900-3200>", "CT: gland swollen, fat around it streaky, [enhances evenly|no collection], [no shadows in the biliary tract|ducts normal]"],
              has="abdomen vomiting liver crp", bar="drink", taboo="alcohol pancreat necrosis"),
    Condition(sides("L03.115", "L03.116"), RED_LEG, lasting="<2-5> days", vitals="fever", tell=[ENTRY],
              show=["{side} shin [hot, red to the knee, edge not sharp|red and tender, <10-22> cm, no fluid to drain]", "[{other} leg normal|{other} shin cool|nodes in the {side} groin]"],
              may=["[the {other} leg never bothered {him}|chills last night]"], has="fever rash skin legs swelling trauma crp", bar="dm", taboo="cellulitis lower limb"),
    Condition(sides("M10.071", "M10.072"), TOE, lasting="<2-4> days", sex="mmmf", age=(38, 76), tell=[FEAST],
              show=["base of the {side} big toe [hot, red, shiny|swollen and purple red]", "[needle crystals in the joint fluid|urate <8.2-10.6>|fluid shows needles that shine yellow]"],
              may=["[the {other} foot is fine|limps]"], has="swelling skin legs crp", bar="urate none family", taboo="gout idiopathic podagra"),
    kidney("N18.31", "<46-58>", "<1.3-1.5>", "<47-59>"),
    kidney("N18.32", "<31-43>", "<1.6-2.1>", "<32-44>"),
    kidney("N18.4", "<16-28>", "<2.4-3.6>", "<17-29>"),
    wrist_new("S52.531A", "S52.532A"),
    Condition({"right": "S52.531D"}, "[cast check|wrist check in the cast|follow-up of the wrist]", age=(40, 82), lasting="<3-6> weeks",
              tell=["[fell on the outstretched right hand last month|tripped onto the right palm a month ago]", "[pain much less|fingers move freely|no new fall]"],
              show=["right cast [sits well|dry and not tight], skin closed", "film: [callus, fragment unchanged|healing line, position as before]"],
              may=["the left hand [is not hurt|does all the work]"], has="trauma swelling", bar="wrist", taboo="colles fracture radius subsequent encounter routine"),
]  # fmt: skip
